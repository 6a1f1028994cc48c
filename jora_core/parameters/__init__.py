"""Parameters as trees of arrays: how they start, LoRA's arithmetic, quantisation."""
