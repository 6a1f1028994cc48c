"""The content of a record: templates, answer styles, distractors and the token budget."""
