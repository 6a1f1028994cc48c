"""The pipeline: configuration, stages, artifact store, plan, Prefect flows and the ``jora`` command.

Importing this package imports nothing heavy: no JAX, no torch, no Prefect. JAX work runs in child processes
(:mod:`flows.children.run_child`), retrieval work too, so this process stays small for as long as the
pipeline runs.
"""
