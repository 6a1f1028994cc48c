"""What the commands are asked for, as Pydantic models; nothing here imports JAX."""
