"""Readers of documents and of questions about them."""
