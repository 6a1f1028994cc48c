"""Supporting facts of HotpotQA: sentences of documents, by number, and where a text has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: The id of a whole document and the number of one of its sentences, from 0.
Fact = tuple[str, int]


class ShownSentence(NamedTuple):
    """A sentence of a document at its place (first character, last + 1) in a prompt."""

    document: str
    number: int
    start: int
    end: int

    @property
    def fact(self) -> Fact:
        """The sentence as a fact."""
        return self.document, self.number


def as_texts(items: Iterable[Sequence[str | int]]) -> list[str]:
    """Return facts or shown sentences as texts, one JSON list each, for columns of texts."""
    return [json.dumps(list(item), ensure_ascii=False) for item in items]


def facts_of(texts: Iterable[str]) -> set[Fact]:
    """Return the facts of a column that `as_texts` made."""
    return {(document, number) for document, number in map(json.loads, texts)}


def shown_sentences(texts: Iterable[str]) -> list[ShownSentence]:
    """Return the shown sentences of a column that `as_texts` made."""
    return [ShownSentence(*json.loads(text)) for text in texts]


def sentence_places(sentences: Sequence[str], text: str) -> tuple[tuple[int, int], ...]:
    """Return the place of each sentence in a text that holds some of them, in their order.

    Args:
        sentences: the sentences; blank ones are nowhere.
        text: the text, of which sentences may have been cut out.

    Returns:
        (first character, last + 1) of each sentence; (-1, -1) if the text does not hold it.
    """
    places = []
    begin = 0
    for sentence in sentences:
        wanted = sentence.strip()
        # Each behind the one before, so that a sentence that occurs twice has two places.
        start = text.find(wanted, begin) if wanted else -1
        places.append((start, start + len(wanted)) if start >= 0 else (-1, -1))
        begin = max(begin, places[-1][1])
    return tuple(places)
