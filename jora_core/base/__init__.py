"""The ground floor: errors, atomic files, digests, progress; no JAX, no room of ours."""
