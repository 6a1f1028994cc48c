"""Reading of Llama models in Meta's own layout."""
