"""The tasks. Each reads its corpus, builds its records, and scores answers to the records."""
