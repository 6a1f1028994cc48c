"""What a nameless author and an empty text are called, and titles in front of texts."""

from __future__ import annotations

NO_TEXT = "(no text)"
ANONYMOUS = "Anonymous"


def titled(title: str, text: str) -> str:
    """Title and text as one run of sentences, without a doubled full stop."""
    if not title:
        return text
    return f"{title} {text}" if title[-1] in ".!?:" else f"{title}. {text}"
