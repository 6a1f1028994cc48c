"""Training: the step, the loop, the optimizer, checkpoints, and exact resume."""
