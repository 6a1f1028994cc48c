"""Child processes that cannot outlive the pipeline, and the two commands that only run as such children."""
