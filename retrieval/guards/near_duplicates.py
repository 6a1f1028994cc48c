"""Texts of the training side that nearly repeat a held-out one: MinHash finds candidates, sets decide.

Two texts are near-duplicates if the Jaccard similarity of their word shingles reaches a threshold (Broder
1997). MinHash signatures in bands (locality-sensitive hashing, by the `rensa` library) find pairs that may
be; each is then checked on the shingles themselves, so nothing is dropped by an estimate. The bands are
chosen so that a pair right at the threshold is missed once in a thousand times at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from retrieval.text.normalize import tokenize

SHINGLE = 3
PERMUTATIONS = 128
MISSED = 1e-3
_BATCH = 4096
_HASH_SEED = 1


def shingles(text: str) -> frozenset[str]:
    """Every run of three words; a shorter text is one shingle, one without words none."""
    words = tokenize(text)
    if len(words) <= SHINGLE:
        return frozenset([" ".join(words)]) if words else frozenset()
    return frozenset(" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity; 0 where either is empty, for two texts without words are not each other's copy."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def bands_for(threshold: float) -> int:
    """How many bands of the signature: few, for speed, but enough for `MISSED` at the threshold."""
    rows = max(
        (r for r in (1, 2, 4, 8, 16) if (1 - threshold**r) ** (PERMUTATIONS // r) <= MISSED), default=1
    )
    return PERMUTATIONS // rows


class NearDuplicates:
    """The held-out texts, to be asked which of them another text nearly repeats.

    `text_of` gives a held-out text by its place again, so that the texts need not stay in memory.
    """

    def __init__(self, held_out: Iterable[str], text_of: Callable[[int], str], threshold: float) -> None:
        from rensa import RMinHashLSH  # type: ignore[attr-defined]

        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold} is not in (0, 1]")
        self.threshold = threshold
        self._text_of = text_of
        self._index: Any = RMinHashLSH(threshold, PERMUTATIONS, bands_for(threshold))
        at = 0
        for batch in _batches(held_out):
            entries = [(at + i, sketch) for i, sketch in _sketches(batch)]
            self._index.insert_pairs(entries)
            at += len(batch)

    def matches(self, texts: Iterable[str]) -> Iterator[int]:
        """For each text, the place of the held-out text it repeats most, -1 where it repeats none."""
        for batch in _batches(texts):
            found = dict(_sketches(batch))
            for i, text in enumerate(batch):
                yield self._best(text, self._index.query(found[i])) if i in found else -1

    def _best(self, text: str, candidates: Sequence[int]) -> int:
        if not candidates:
            return -1
        own = shingles(text)
        rated = [(similarity(own, shingles(self._text_of(place))), -place) for place in candidates]
        score, place = max(rated)
        return -place if score >= self.threshold else -1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    left = iter(texts)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _sketches(batch: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """(place in the batch, signature) of the texts that have words."""
    from rensa import RMinHash  # type: ignore[attr-defined]

    sets = [(i, sorted(found)) for i, text in enumerate(batch) if (found := shingles(text))]
    sketches = RMinHash.from_token_sets([words for _, words in sets], PERMUTATIONS, _HASH_SEED)
    yield from zip((i for i, _ in sets), sketches, strict=True)
