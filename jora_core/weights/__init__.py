"""Reading, writing and merging of weights: Hugging Face folders, safetensors, PEFT adapters."""
