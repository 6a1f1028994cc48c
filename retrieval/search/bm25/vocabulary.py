"""A vocabulary that opens in no time: terms as one blob of text, found by hash through binary search.

A Python dict of a million terms takes a second to make. Here a saved vocabulary is four arrays that are
mapped into memory; a term is looked up by its CRC-32 among the sorted ones, and what was found once is
remembered.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: How many answers (also "not there") are remembered before all are forgotten.
REMEMBERED = 1 << 20

#: names of the arrays, as `word_arrays` makes them and a saved index holds them
WORD_ARRAYS = ("word_bytes", "word_ends", "hashes", "by_hash")


@dataclass(frozen=True, eq=False)
class Vocabulary(Mapping[str, int]):
    """Terms and their ids over arrays, which may be memory-mapped.

    Invariants: term t is `word_bytes[word_ends[t-1]:word_ends[t]]` in UTF-8; `hashes` is sorted, and
    `by_hash[i]` is the term whose CRC-32 is `hashes[i]`.
    """

    word_bytes: np.ndarray
    word_ends: np.ndarray
    hashes: np.ndarray
    by_hash: np.ndarray
    _known: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.word_ends)

    def __iter__(self) -> Iterator[str]:
        blob = self.word_bytes.tobytes()
        start = 0
        for end in self.word_ends.tolist():
            yield blob[start:end].decode("utf-8", "surrogatepass")
            start = end

    def __getitem__(self, term: str) -> int:
        found = self._known.get(term)
        if found is None:
            found = self._find(term)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[term] = found
        if found < 0:
            raise KeyError(term)
        return found

    def ids(self, terms: Iterable[str]) -> list[int]:
        """The ids of the terms that are known, in order, the others left out."""
        known = self._known
        out = []
        for term in terms:
            found = known.get(term)
            if found is None:
                found = self.get(term, -1)
            if found >= 0:
                out.append(found)
        return out

    def _find(self, term: str) -> int:
        """The id of the term, or -1."""
        wanted = term.encode("utf-8", "surrogatepass")
        # A number of the array's own type: any other would convert the whole array at every look-up.
        crc = np.uint32(zlib.crc32(wanted))
        place = int(self.hashes.searchsorted(crc))
        while place < len(self.hashes) and self.hashes[place] == crc:
            term_id = int(self.by_hash[place])
            start = int(self.word_ends[term_id - 1]) if term_id else 0
            if self.word_bytes[start : int(self.word_ends[term_id])].tobytes() == wanted:
                return term_id
            place += 1
        return -1


def word_arrays(words: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a `Vocabulary`, by name, in which `words[t]` has the id t."""
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
    """The ids of the terms that the vocabulary knows, in order, repeats kept."""
    if isinstance(vocabulary, Vocabulary):
        return vocabulary.ids(terms)
    found = map(vocabulary.get, terms)
    return [term for term in found if term is not None]
