"""The schema of the pipeline's configuration, and the loading of a configuration from a YAML file."""
