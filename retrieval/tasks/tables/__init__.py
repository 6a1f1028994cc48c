"""The task of questions over tables."""
