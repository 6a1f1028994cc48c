"""The pipeline: configuration, stages, artifact store, plan, Prefect flows and the ``jora`` command.

The import of this package loads no heavy library, such as JAX, torch or Prefect. JAX and retrieval work runs
in child processes (:mod:`flows.children.run_child`), so the pipeline's own process stays small.
"""
