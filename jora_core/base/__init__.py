"""What all packages may use: errors, atomic files, digests, progress. It imports none of them, and no JAX."""
