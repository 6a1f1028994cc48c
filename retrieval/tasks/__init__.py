"""The tasks: how each reads its corpus, builds its records, and scores answers to them."""
