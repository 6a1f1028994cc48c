"""Answers: prefill, key/value cache, sampling, streamed text, and scores of choices."""
