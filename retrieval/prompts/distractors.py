"""Choose the distractors of a prompt, and the questions that share one context.

Random distractors are too easy, because a model can recognise the right document by its topic. Distractors
are therefore texts that the retriever ranks high without being right (hard negatives): the best ones, or a
seeded draw from a range of ranks. A copy of the right text is no distractor but a second right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from retrieval.guards.near_duplicates import shingles, similarity

Ranks = tuple[int, int]


def pick(
    usable: Iterable[int], count: int, ranks: Ranks | None, draw: Callable[[int], int]
) -> tuple[list[int], int]:
    """Choose distractors, best first, and count those that lie outside the range `ranks`.

    Args:
        usable: places that may be distractors, best first; read only as far as needed.
        count: number of distractors to return; fewer if `usable` is shorter.
        ranks: (lowest, highest), counted from 1 among the usable: places are drawn from these ranks, those
            with the smallest `draw` first. None: the best ones. Where the range holds too few, the ranks
            nearest to it fill up, lower ranked ones first.
        draw: returns a seeded number for a place.

    Returns:
        (the places, how many of them lie outside `ranks`).
    """
    if count <= 0:
        return [], 0
    if ranks is None:
        return list(islice(usable, count)), 0
    low, high = ranks
    # `count` more than the range, to fill up from. The iterator is read no further, because each place costs
    # a comparison of texts.
    found = list(islice(usable, high + count))
    inside = sorted(range(low - 1, min(high, len(found))), key=lambda i: draw(found[i]))[:count]
    missing = count - len(inside)
    beyond = [*range(high, len(found)), *reversed(range(min(low - 1, len(found))))][:missing]
    return [found[i] for i in sorted([*inside, *beyond])], len(beyond)


class CopyTest:
    """A test whether a text nearly repeats one of some given texts (a document's, or a table's right
    answers).
    """

    def __init__(self, texts: Iterable[str], threshold: float | str) -> None:
        self._threshold = None if isinstance(threshold, str) else threshold
        self._sets = [] if self._threshold is None else [shingles(text) for text in texts]

    def __call__(self, text: str) -> bool:
        """Return whether a text is a copy. Without near-duplicate removal (threshold "off"), no text is."""
        if self._threshold is None:
            return False
        own = shingles(text)
        return any(similarity(own, other) >= self._threshold for other in self._sets)


def sharing_groups(splits: Sequence[str], share: int) -> list[tuple[int, ...]]:
    """Return, for each question, the places of the questions that share its context, itself included.

    Up to `share` training questions that follow one another share a context. Blocks are cut at multiples of
    `share`, so that the groups of a part of the corpus do not depend on the rest. A held-out question shares
    its context with no other question, because it is scored on its own retrieved texts.
    """
    out: list[tuple[int, ...]] = []
    for start in range(0, len(splits), share):
        block = range(start, min(start + share, len(splits)))
        together = tuple(i for i in block if splits[i] != "test")
        out += [(i,) if splits[i] == "test" else together for i in block]
    return out


def merged(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Merge several rankings into one: the first place of each, then the second of each, without repeats."""
    depth = max((len(ranking) for ranking in rankings), default=0)
    # A text at rank 1 of any question comes before all texts at rank 2, so that every question gets
    # distractors.
    turns = (ranking[rank] for rank in range(depth) for ranking in rankings if rank < len(ranking))
    return list(dict.fromkeys(turns))
