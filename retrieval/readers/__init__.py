"""Readers of files. Each yields `corpus` values from one format and names file and row in every error."""
