"""Guards of honest evaluation: splits, leaks, near-duplicates."""
