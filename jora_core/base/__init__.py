"""Errors, atomic files, digests and progress for all packages; imports neither other packages nor JAX."""
