"""Cut texts into sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

# A sentence ends at its mark and white space. The marks of scripts without blanks need no white space.
_END = re.compile(
    r"(?<=[.!?।॥؟۔。！？])[\"'”’)\]」』）]*\s+|(?<=[。！？])[”’」』）]*(?=[^\s”’」』）])|(?P<line>\n+)"
)
# A line that begins like this is an item, a heading, a quotation, a row of a table or code.
_OPENS_BLOCK = re.compile(r"(?:\s|[-*+•–] |\d+[.)] |[#>|]|```)")
#: Lines of running text are about as long as the page is wide. A shorter line ends because its text ends.
_FULL_LINE = 45


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return the (first character, last + 1) of each sentence of a text, without white space at the ends.

    A sentence ends after `.`, `!` or `?` (also the signs of other scripts) and closing quotes, within a line
    and at its end. It also ends at a line break without such a mark, but not at one that only wraps a long
    line.
    """
    spans = []
    for start, end in _pieces(text):
        stripped = text[start:end].strip()
        if stripped:
            first = text.index(stripped, start)
            spans.append((first, first + len(stripped)))
    return spans


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each verbatim."""
    return [text[start:end] for start, end in sentence_spans(text)]


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for end in _END.finditer(text):
        # A break behind a mark is no `line`: the mark has ended the sentence, however long its line is.
        if end["line"] == "\n" and _wraps(text, end.start()):
            continue
        yield start, end.end()
        start = end.end()
    yield start, len(text)


def _wraps(text: str, at: int) -> bool:
    """Return whether the line break at a place only wraps a line of running text."""
    after = text.find("\n", at + 1)
    line = text[text.rfind("\n", 0, at) + 1 : at]
    following = text[at + 1 : after if after >= 0 else len(text)]
    if len(line) < _FULL_LINE or " | " in line or " | " in following:
        return False
    return line[0] not in "#|>`" and _OPENS_BLOCK.match(following) is None
