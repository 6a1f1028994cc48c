"""Teacher models that make questions: asking them, what they have answered, and what that costs."""
