"""Remove from messages what a screen does not show: colours, control characters, invisible characters."""

from __future__ import annotations

import re

from retrieval.text.normalize import NOISE, fold

# The colours and styles of terminals (ECMA-48) and of IRC (https://modern.ircdocs.horse/formatting).
_COLOURS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x03(?:\d{1,2}(?:,\d{1,2})?)?|\x04(?:[0-9A-Fa-f]{6})?"
)
# Noise, and what a chat does not show: controls that count as white space, zero-width spaces, and marks of
# direction. Documents keep these, because a zero-width space parts the words of Thai and Khmer. The joiners
# U+200C and U+200D stay everywhere, because Persian, Hindi and emoji need them.
_UNSEEN = re.compile(f"[{NOISE}\x0b\x0c\x1c-\x1f\u200b\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return a text without colours and invisible characters; a text without them is unchanged."""
    # `isprintable` is much faster than the search, and true of nearly all messages.
    if text.isprintable() or _UNSEEN.search(text) is None:
        return text
    return fold(visible_line(text))


def visible_line(line: str) -> str:
    """Return a line of a log without colours and invisible characters; its spaces stay."""
    if line.isprintable() or _UNSEEN.search(line) is None:
        return line
    return _UNSEEN.sub("", _COLOURS.sub("", line))


def without_quotes(text: str) -> str:
    """Return a text in Markdown or of a mail without its quoted lines, which would reveal what it answers."""
    if ">" not in text:
        return text
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith(">"))
