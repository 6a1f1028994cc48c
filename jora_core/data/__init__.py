"""Training data, from a records file to batches: tokens, shared contexts, packed rows."""
