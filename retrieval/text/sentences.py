"""Cut texts into sentences."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|\n+")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each verbatim.

    The text is cut at line ends, and at white space after `.`, `!` or `?` (also the full-width signs) and
    closing quotes.
    """
    out, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        out.append(text[start : end.end()].strip())
        start = end.end()
    return [sentence for sentence in [*out, text[start:].strip()] if sentence]
