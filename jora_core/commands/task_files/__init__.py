"""Tasks of EleutherAI's lm-eval from held-out records with choices."""
