"""Where a sentence ends."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|\n+")


def sentences(text: str) -> list[str]:
    """The sentences of a text, each verbatim: cut at line ends and at spaces behind `.`, `!` or `?`."""
    out, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        out.append(text[start : end.end()].strip())
        start = end.end()
    return [sentence for sentence in [*out, text[start:].strip()] if sentence]
