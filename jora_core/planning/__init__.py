"""What a training step costs before there is a device: bytes, operations, traffic."""
