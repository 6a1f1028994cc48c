"""Find questions that repeat earlier ones, and questions that another document answers as well."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from retrieval.corpus.types import Document
from retrieval.text.normalize import duplicate_key
from retrieval.text.sentences import sentences
from retrieval.text.words import tokenize


def repeated(questions: Iterable[str], threshold: float | Literal["off"]) -> Iterator[str]:
    """Yield, for each question, why it repeats an earlier one that repeats none; "" if it does not.

    Two questions are near-duplicates if the Jaccard similarity of their word sets reaches the threshold.
    Candidates are found by prefix filtering: two sets of such a similarity share a word among the first of
    each, in any fixed order of words (Bayardo, Ma and Srikant: Scaling Up All Pairs Similarity Search, 2007).

    Args:
        questions: the questions, in their order.
        threshold: similarity from which a question repeats another; "off": equal words only.
    """
    equal: set[bytes] = set()
    kept: list[frozenset[str]] = []
    by_word: dict[str, list[int]] = {}
    for question in questions:
        key = duplicate_key(question)
        if key in equal:
            yield "question_repeated"
            continue
        equal.add(key)
        if threshold == "off":
            yield ""
            continue
        words = frozenset(tokenize(question))
        # Long words are rare, so few questions share one: a cheap stand-in for the order by frequency.
        prefix = sorted(words, key=lambda word: (-len(word), word))
        prefix = prefix[: len(words) - math.ceil(threshold * len(words)) + 1]
        candidates = {place for word in prefix for place in by_word.get(word, ())}
        if any(_jaccard(words, kept[place]) >= threshold for place in candidates):
            yield "question_nearly_repeated"
            continue
        for word in prefix:
            by_word.setdefault(word, []).append(len(kept))
        kept.append(words)
        yield ""


def _jaccard(one: Collection[str], other: Collection[str]) -> float:
    shared = len(set(one) & set(other))
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def answered_elsewhere(
    evidence: Sequence[str], documents: Sequence[str], chunks: Iterable[Document]
) -> list[bool]:
    """Return, for each question, whether another document has the sentence that answers it.

    Such a question does not tell which document it is about, and its decoys would answer it.

    Args:
        evidence: the sentence that answers each question; "" for none.
        documents: the document of each question.
        chunks: all chunks of the corpus.
    """
    keys = [duplicate_key(sentence) if sentence else b"" for sentence in evidence]
    wanted = set(keys) - {b""}
    found: dict[bytes, set[str]] = {}
    for chunk in chunks:
        for sentence in sentences(chunk.text) if wanted else ():
            if (key := duplicate_key(sentence)) in wanted:
                found.setdefault(key, set()).add(chunk.context_id)
    return [_elsewhere(found, key, document) for key, document in zip(keys, documents, strict=True)]


def _elsewhere(found: Mapping[bytes, set[str]], key: bytes, document: str) -> bool:
    return bool(found.get(key, set()) - {document})
