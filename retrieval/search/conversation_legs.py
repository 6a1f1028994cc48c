"""Legs over a conversation: which earlier posts a comment may answer, judged by who speaks to whom.

A leg is a ranking of places 0…n-1 (time order), best first; a leg may have nothing to say. Similarity alone
is a weak retriever of what a message answers (BM25 finds 20 % of the parents at rank 1 in IRC): replies
share few words with what they answer. People name whom they answer, answer who named them, and go on
with what they said. What each leg finds alone and together: docs/benchmarks.md, "Retrieval on IRC".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from retrieval.corpus.types import Post

_NONE = np.zeros(0, dtype=np.int64)


def conversation_legs(
    comment: Post, candidates: Sequence[Post], low: int, wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """The wanted ones of the legs below: name -> int64 places of the candidates that it ranks, best first.

    `low` is the first candidate's place in its thread.
    """
    authors = [post.author for post in candidates]
    out: dict[str, np.ndarray] = {}
    if "recency" in wanted:
        out["recency"] = recency(len(candidates))
    if "mention" in wanted:
        out["mention"] = mentions(comment.text, authors)
    if "opening" in wanted:
        out["opening"] = opening(low)
    if "addressed_me" in wanted:
        out["addressed_me"] = addressed_me(comment.author, candidates)
    if "same_author" in wanted:
        out["same_author"] = _by_author(comment.author, authors)
    if "partner" in wanted:
        out["partner"] = partner(comment, candidates)
    return out


def recency(n: int) -> np.ndarray:
    """int64[n]: the latest candidate first; fusion makes its weight decay with distance."""
    return np.arange(n - 1, -1, -1)


def opening(low: int) -> np.ndarray:
    """int64: the first candidate where it is the thread's opening post, which many replies answer."""
    return np.arange(1 if low == 0 else 0)


def mentions(comment: str, authors: Sequence[str]) -> np.ndarray:
    """int64: candidates whose author the comment names, those it opens with first, later posts before earlier
    ones.

    A name counts as a whole word without regard to case; one-letter names are ignored.
    """
    text = comment.casefold()
    named: dict[str, int] = {}
    for author in set(authors):
        at = _named_at(text, author)
        if at >= 0:
            named[author] = 0 if at <= 1 else 1  # at 1: `@name`
    if not named:
        return _NONE
    places = [place for place, author in enumerate(authors) if author in named]
    return np.array(sorted(places, key=lambda p: (named[authors[p]], -p)), dtype=np.int64)


def addressed_me(asker: str, candidates: Sequence[Post]) -> np.ndarray:
    """int64: others' posts that name the comment's author, latest first.

    Whoever was spoken to answers: the strongest cue for a reply that names nobody itself, and where it does,
    the way to tell which of that person's posts is meant.
    """
    return np.array(
        [
            place
            for place in range(len(candidates) - 1, -1, -1)
            if candidates[place].author != asker and _named_at(candidates[place].text.casefold(), asker) >= 0
        ],
        dtype=np.int64,
    )


def partner(comment: Post, candidates: Sequence[Post]) -> np.ndarray:
    """int64: posts of whom the comment's author last spoke to by name, latest first; only where the comment
    names nobody itself.

    Two people in conversation drop the names after the first lines.
    """
    authors = [post.author for post in candidates]
    if len(mentions(comment.text, authors)):
        return _NONE
    others = [author for author in authors if author != comment.author]
    for place in _by_author(comment.author, authors).tolist():
        named = mentions(candidates[place].text, others)
        if len(named):
            return _by_author(others[int(named[0])], authors)
    return _NONE


def _by_author(author: str, authors: Sequence[str]) -> np.ndarray:
    """int64: the author's own posts, latest first.

    As the leg `same_author`: a line that continues what its author said just before is a reply to it.
    """
    return np.array([p for p in range(len(authors) - 1, -1, -1) if authors[p] == author], dtype=np.int64)


def _named_at(folded_text: str, author: str) -> int:
    """Where a case-folded text first names an author as a word of its own, or -1; names may begin or end with
    signs.
    """
    name = author.casefold()
    at = folded_text.find(name) if len(name) >= 2 else -1
    if at < 0:
        return -1
    match = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", folded_text[max(at - 1, 0) :])
    return match.start() + max(at - 1, 0) if match else -1
