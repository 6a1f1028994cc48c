"""Readers of tables with questions."""
