"""Generation of answers: prefill, key/value cache, sampling, streamed text, and scores of choices."""
