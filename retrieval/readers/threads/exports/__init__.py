"""Readers of what people can export from services: one file for each."""
