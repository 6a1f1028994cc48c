"""What keeps an evaluation honest: splits, leaks, near-duplicates."""
