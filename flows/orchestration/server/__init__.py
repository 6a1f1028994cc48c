"""Who serves on this machine, and what a run does while its Prefect server is gone."""
