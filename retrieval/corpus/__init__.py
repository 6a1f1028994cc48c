"""The corpus in memory and on disk: its types, source files, memory-mapped rows and chunks."""
