"""Parallel computation on several devices and processes: the mesh, placements, collectives."""
