"""The commands of `jora`, and the functions that print their results."""
