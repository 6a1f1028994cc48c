"""When the stages run: Prefect flows, tasks, deployments and the server."""
