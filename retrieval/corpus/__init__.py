"""A corpus in memory and on disk: its types, source files, mapped rows and chunks."""
