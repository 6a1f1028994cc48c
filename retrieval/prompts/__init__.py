"""What stands in a record: templates, answer styles, distractors, the token budget."""
