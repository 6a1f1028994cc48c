"""Readers of files that are one document each, one module for each kind of file."""
