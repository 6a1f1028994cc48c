"""Weights on disk: Hugging Face folders, safetensors, PEFT adapters, merging."""
