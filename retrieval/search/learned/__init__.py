"""Learned fusion: a ranker over features of messages, fitted on reply links of the training split."""
