"""The parts of `jora serve`: run form, deployments, worker, report server and check."""
