"""Find training texts that nearly repeat a test text.

MinHash finds candidate pairs, and the exact similarity decides.

Two texts are near-duplicates if the Jaccard similarity of their word shingles reaches a threshold (Broder
1997). MinHash signatures in bands (locality-sensitive hashing, by the `rensa` library) find the pairs that
may be similar. Each pair is then compared by its shingles, so no text is dropped because of an estimate. The
bands are chosen so that a pair exactly at the threshold is missed with a probability of at most 1 in 1000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from retrieval.text.normalize import tokenize

#: Words of a shingle.
SHINGLE = 3
#: Numbers of a MinHash signature.
PERMUTATIONS = 128
#: The largest share of pairs at the threshold that the bands may miss.
MISSED = 1e-3
_BATCH = 4096
_HASH_SEED = 1


def shingles(text: str) -> frozenset[str]:
    """Return the set of all runs of three words of a text.

    A shorter text is one shingle. A text without words has none.
    """
    words = tokenize(text)
    if len(words) <= SHINGLE:
        return frozenset([" ".join(words)]) if words else frozenset()
    return frozenset(" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets of shingles.

    The similarity is 0 if a set is empty, so that two texts without words are not duplicates.
    """
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def bands_for(threshold: float) -> int:
    """Return the number of bands of a signature.

    For speed, this is the smallest number that misses a pair at the threshold with a probability of at most
    `MISSED`.
    """
    # A pair of similarity s agrees in one band of r numbers with probability s^r, so it is missed by all b
    # bands with probability (1 - s^r)^b.
    rows = max(
        # More numbers in a band give fewer candidates to compare, and more missed pairs.
        (r for r in (1, 2, 4, 8, 16) if (1 - threshold**r) ** (PERMUTATIONS // r) <= MISSED),
        default=1,
    )
    return PERMUTATIONS // rows


class NearDuplicates:
    """An index of texts that finds, for another text, the indexed text that it nearly repeats."""

    def __init__(self, texts: Iterable[str], text_of: Callable[[int], str], threshold: float) -> None:
        """Index the texts of the test split.

        Args:
            texts: the texts of the test split.
            text_of: returns the text at a place, so that the texts need not stay in memory.
            threshold: similarity from which a text is a near-duplicate, in (0, 1].
        """
        from rensa import RMinHashLSH  # type: ignore[attr-defined]

        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold} is not in (0, 1]")
        self.threshold = threshold
        self._text_of = text_of
        self._index: Any = RMinHashLSH(threshold, PERMUTATIONS, bands_for(threshold))
        at = 0
        for batch in _batches(texts):
            entries = [(at + i, sketch) for i, sketch in _sketches(batch)]
            # In batches: fewer calls from Python into Rust.
            self._index.insert_pairs(entries)
            at += len(batch)

    def matches(self, texts: Iterable[str]) -> Iterator[int]:
        """Yield, for each text, the place of the indexed text with the highest similarity, or -1."""
        for batch in _batches(texts):
            found = dict(_sketches(batch))
            for i, text in enumerate(batch):
                yield self._best(text, self._index.query(found[i])) if i in found else -1

    def _best(self, text: str, candidates: Sequence[int]) -> int:
        if not candidates:
            return -1
        own = shingles(text)
        # Of equally similar ones, the first: its negative place is the largest.
        rated = [(similarity(own, shingles(self._text_of(place))), -place) for place in candidates]
        score, place = max(rated)
        return -place if score >= self.threshold else -1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    left = iter(texts)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _sketches(batch: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield (place in the batch, signature) of each text that has words."""
    from rensa import RMinHash  # type: ignore[attr-defined]

    # Sorted, because a set of texts has another order in each Python process.
    sets = [(i, sorted(found)) for i, text in enumerate(batch) if (found := shingles(text))]
    sketches = RMinHash.from_token_sets([words for _, words in sets], PERMUTATIONS, _HASH_SEED)
    yield from zip((i for i, _ in sets), sketches, strict=True)
