"""How good the retriever is, and how good a model's answers are."""
