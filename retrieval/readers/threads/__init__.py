"""Readers of threads, one file a format, and their registry."""
