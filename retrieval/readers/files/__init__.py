"""File access for all readers: packed lines, streamed JSON, rows of a table file."""
