"""Measures of a retriever, and scores of a model's answers."""
