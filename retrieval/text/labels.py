"""Labels for an unknown author and an empty text, and titles in front of texts."""

from __future__ import annotations

NO_TEXT = "(no text)"
ANONYMOUS = "Anonymous"


def titled(title: str, text: str) -> str:
    """Join a title and a text into one text, without a double full stop between them."""
    if not title:
        return text
    return f"{title} {text}" if title[-1] in ".!?:" else f"{title}. {text}"
