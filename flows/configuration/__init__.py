"""The pipeline's configuration: its schema, and how a YAML file becomes one."""
