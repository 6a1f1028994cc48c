"""Curves of a training for TensorBoard, Weights & Biases and MLflow."""
