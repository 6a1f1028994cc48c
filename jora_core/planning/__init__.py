"""Plans of a training step without a device: memory, floating-point operations and collectives."""
