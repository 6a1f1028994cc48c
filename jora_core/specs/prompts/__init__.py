"""The setting of the prompts' template, the template that it names, and its rendering."""
