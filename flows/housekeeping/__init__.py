"""List the runs and artifacts of a store, pin runs, and remove what no kept run needs."""
