"""Readers: each yields `corpus` values from one format and names file and row in every error."""
