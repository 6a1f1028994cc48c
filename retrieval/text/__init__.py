"""Text: normalising, sentences, times, labels, and counting tokens."""
