"""Questions that a teacher model makes about documents: requests, reading of answers, checks, files."""
