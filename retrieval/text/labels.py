"""Labels for an unknown author and an empty text, titles in front of texts, counts with their nouns."""

from __future__ import annotations

NO_TEXT = "(no text)"
ANONYMOUS = "Anonymous"


def titled(title: str, text: str) -> str:
    """Join a title and a text into one text, without a double full stop between them.

    A text of several lines begins on a line of its own, because the first may be a row of a table or code.
    """
    if not title:
        return text
    space = "\n" if "\n" in text else " "
    return f"{title}{space}{text}" if title[-1] in ".!?:。！？" else f"{title}.{space}{text}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless the count is one."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
