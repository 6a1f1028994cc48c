"""Several devices and processes: the mesh, placements, collectives."""
