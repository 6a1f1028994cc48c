"""Stages, keys, the artifact store, the plan, and the run of one stage: all of it without Prefect."""
