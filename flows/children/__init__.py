"""Child processes that cannot outlive the pipeline, and the two commands that run only as child processes."""
