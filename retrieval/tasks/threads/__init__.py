"""The task of reply links in threads."""
