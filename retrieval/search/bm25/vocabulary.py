"""A vocabulary that opens without reading: one array of bytes, searched by sorted hashes of the terms.

A Python dict of a million terms takes a second to make. A saved vocabulary is four arrays that are mapped
into memory. A term is found by a binary search for its CRC-32, and its id is then cached.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: Look-ups (also of unknown terms) that are remembered before all are forgotten.
REMEMBERED = 1 << 20

#: Names of the arrays that `word_arrays` makes and a saved index holds.
WORD_ARRAYS = ("word_bytes", "word_ends", "hashes", "by_hash")


@dataclass(frozen=True, eq=False)
class Vocabulary(Mapping[str, int]):
    """A map from terms to their ids. Its arrays may be memory-mapped.

    Invariants: term t is `word_bytes[word_ends[t - 1] : word_ends[t]]` in UTF-8. `hashes` is sorted.
    `by_hash[i]` is the id of the term whose CRC-32 is `hashes[i]`.
    """

    word_bytes: np.ndarray
    word_ends: np.ndarray
    hashes: np.ndarray
    by_hash: np.ndarray
    _known: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.word_ends)

    def __iter__(self) -> Iterator[str]:
        # One copy of all bytes: slicing bytes is much faster than slicing an array for each word.
        blob = self.word_bytes.tobytes()
        start = 0
        for end in self.word_ends.tolist():
            yield blob[start:end].decode("utf-8", "surrogatepass")
            start = end

    def __getitem__(self, term: str) -> int:
        found = self._known.get(term)
        if found is None:
            found = self._find(term)
            # Forgetting everything at once is simpler than a queue, and a query's few words are looked up
            # again at once.
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            # A -1 is kept as well: unknown words of queries repeat too, and each costs a binary search.
            self._known[term] = found
        if found < 0:
            raise KeyError(term)
        return found

    def ids(self, terms: Iterable[str]) -> list[int]:
        """Return the ids of the known terms, in the order of `terms`."""
        known = (
            self._known
        )  # `self[term]` for every word of a query would cost two more calls and an exception
        out = []
        for term in terms:
            found = known.get(term)
            if found is None:
                found = self.get(term, -1)
            if found >= 0:
                out.append(found)
        return out

    def _find(self, term: str) -> int:
        """Return the id of a term, or -1 if the vocabulary lacks the term."""
        # surrogatepass: broken text may hold half of a surrogate pair, which plain UTF-8 refuses.
        wanted = term.encode("utf-8", "surrogatepass")
        # As uint32, the array's own type: of any other, numpy would convert the whole array at every look-up.
        crc = np.uint32(zlib.crc32(wanted))
        place = int(self.hashes.searchsorted(crc))
        # Among a million terms, some hundred pairs share a CRC-32, so the bytes decide.
        while place < len(self.hashes) and self.hashes[place] == crc:
            term_id = int(self.by_hash[place])
            start = int(self.word_ends[term_id - 1]) if term_id else 0
            if self.word_bytes[start : int(self.word_ends[term_id])].tobytes() == wanted:
                return term_id
            place += 1
        return -1


def word_arrays(words: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a `Vocabulary` by name. Word `words[t]` has the id t."""
    encoded = [word.encode("utf-8", "surrogatepass") for word in words]
    hashes = np.fromiter(map(zlib.crc32, encoded), dtype=np.uint32, count=len(encoded))
    by_hash = np.argsort(hashes, kind="stable").astype(np.int32)
    return {
        "word_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "word_ends": np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))),
        "hashes": hashes[by_hash],
        "by_hash": by_hash,
    }


def known_ids(vocabulary: Mapping[str, int], terms: Iterable[str]) -> list[int]:
    """Return the ids of the terms in the vocabulary, in the order of `terms`, with repeats."""
    if isinstance(vocabulary, Vocabulary):
        return vocabulary.ids(terms)
    found = map(vocabulary.get, terms)
    return [term for term in found if term is not None]
