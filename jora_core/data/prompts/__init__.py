"""Prompts: templates that frame a record or a conversation, and shortening of what is too long."""
