"""Reading of configuration files, with errors that name the line and the nearest known key."""
