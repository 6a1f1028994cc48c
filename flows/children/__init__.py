"""Child processes that cannot outlive the pipeline, and the two commands that are children of ours."""
