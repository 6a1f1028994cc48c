"""The settings of retrieval, and the registries of tasks, formats, layouts and legs that settings name."""
