"""What a model is: its shape, its family, the names and shapes of its tensors."""
