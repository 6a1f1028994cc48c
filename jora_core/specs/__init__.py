"""Specs: the settings of each command, as Pydantic models that are imported without JAX."""
