"""Readers of threads, one module for each format, and their registry."""
