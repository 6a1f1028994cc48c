"""The way back from an artifact, or from an exported model, to the raw rows that taught it."""
