"""GPU kernels of the model, written in Pallas."""
