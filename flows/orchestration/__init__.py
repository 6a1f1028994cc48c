"""The Prefect flows, tasks, deployments and server, which run the stages of the pipeline."""
