"""Guards that keep an evaluation valid: splits, checks for leaks, removal of near-duplicates."""
