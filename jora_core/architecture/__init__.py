"""Architecture of a model: shape, family, and the names and shapes of all tensors."""
