"""Training: the step, the loop, the optimizer, metrics, and checkpoints with exact resume."""
