"""Parameters as trees of arrays: initialization, LoRA's arithmetic, quantization."""
