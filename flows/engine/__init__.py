"""Stages, their keys, the artifact store, the plan, and the run of one stage, all without Prefect."""
