"""What all readers read by: packed lines, streamed JSON, rows of a table file."""
