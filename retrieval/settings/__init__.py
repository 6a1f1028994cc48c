"""What a configuration says of retrieval: one Pydantic model, and one a task."""
