"""Read a written answer: the part that is scored, and the post and author that it names."""

from __future__ import annotations

import re

#: Before the answer, where a style teaches to write something else first.
ANSWER_MARK = "##Answer:"

# At most nine digits: a broken model may write thousands, and Python refuses to convert so many.
_LABEL = re.compile(r"^\s*#\s*(?P<number>\d{1,9})(?!\d)\s*(?P<author>.*?)[\s.,;:!?]*$")


def final_answer(text: str) -> str:
    """Return the part of a written answer after its last `##Answer:`, or the whole text without that mark."""
    return text.rpartition(ANSWER_MARK)[2].strip() if ANSWER_MARK in text else text


def parse_answer(text: str) -> tuple[str | None, int | None]:
    """Return (author, post number) of a written answer such as `#3 Marta`. A missing part is None.

    Spaces, a closing full stop and further lines are ignored, because models sometimes write them.
    """
    lines = text.strip().splitlines()
    if not lines:
        return None, None
    match = _LABEL.match(lines[0])
    if match is None:
        return " ".join(lines[0].split()), None
    author = " ".join(match["author"].split())
    return author or None, int(match["number"])
