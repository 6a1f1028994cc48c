"""BM25 with rank_bm25's Okapi weights, exactly, over sparse postings.

rank_bm25 rebuilds Python lists at every query; here the weight of every (term, document) pair is computed
once and a query adds up a few slices. Every floating-point operation runs in the library's order, so the
scores are bitwise its scores. A term in more than half of the documents gets epsilon times the mean IDF
instead of its negative one (Trotman et al. 2014, as rank_bm25 has it). The IDF is the collection's, also
where a ranking is restricted.

`bm25_build` makes an index from a stream, `bm25_store` is its form on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retrieval.search.bm25.maxscore import SEARCH_ARRAYS
from retrieval.search.bm25.vocabulary import known_ids
from retrieval.search.top_k import top_k
from retrieval.text.normalize import Tokenizer

#: Postings from which on a search is compiled; below, numpy needs no more than some tenths of a millisecond.
LARGE = 1 << 17


class Ranker(Protocol):
    """What the tasks need of a BM25 index."""

    @property
    def n_documents(self) -> int:
        """D."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """What splits documents and queries into words."""
        ...

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """float64[D]: the score of every document."""
        ...

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """float64[high - low]: the scores of documents low to high - 1."""
        ...

    def search(self, query: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k documents (int64) and their scores, ties by the earlier document."""
        ...

    def search_batch(
        self, queries: Sequence[Sequence[str]], k: int, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(places int64[Q, k'], scores float64[Q, k']) of many queries, k' = min(k, D)."""
        ...


@dataclass(frozen=True, eq=False)
class BM25Index:
    """Postings by term: documents `docs[indptr[t]:indptr[t+1]]` (ascending) with their `weights` (float64).

    This is the CSR layout of a terms × documents matrix; `matrix` gives it as scipy's. Beside the weights
    stand the counts from which they follow: by posting, `frequencies` of the term in the document and
    `firsts`, its first place there; by document, `lengths` in tokens. `bounds` has each term's largest
    weight. A term's document numbers are cut into equal blocks of 2 ** `shifts[t]`, about eight postings
    each: those of block b begin at `fences[fence_starts[t] + b]`. The 63 most frequent terms have a bit
    (`bits[t]`, others -1), and `signatures` says of each document which of these it holds. Arrays may be
    memory-mapped.
    """

    vocabulary: Mapping[str, int]
    indptr: np.ndarray
    docs: np.ndarray
    weights: np.ndarray
    n_documents: int
    frequencies: np.ndarray
    firsts: np.ndarray
    lengths: np.ndarray
    bounds: np.ndarray
    fences: np.ndarray
    fence_starts: np.ndarray
    shifts: np.ndarray
    signatures: np.ndarray
    bits: np.ndarray
    tokenizer: Tokenizer
    #: arrays in which `bm25_fast` works, kept from search to search; one set a thread
    room: list[Any] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        # Read-only like mapped ones: nobody changes them, and compiled code knows one type of array.
        for name in SEARCH_ARRAYS:
            array = getattr(self, name)
            array.flags.writeable = False

    @classmethod
    def build(cls, corpus: Iterable[Sequence[str]], tokenizer: Tokenizer | None = None) -> BM25Index:
        """Indexes documents that `tokenizer` has split; an empty corpus gives an index that finds nothing."""
        from retrieval.search.bm25.builder import BM25Builder

        builder = BM25Builder(tokenizer)
        builder.add_tokens(corpus)
        return builder.finish()

    @classmethod
    def load(cls, folder: Path, verify: bool = False) -> BM25Index:
        """Opens a saved index without reading it; see `bm25_store.load`."""
        from retrieval.search.bm25.folder import load

        return load(folder, verify)

    def save(self, folder: Path) -> None:
        """Writes the index as a folder, all of it or nothing; see `bm25_store.save`."""
        from retrieval.search.bm25.folder import save

        save(self, folder)

    def add(self, corpus: Iterable[Sequence[str]]) -> BM25Index:
        """The index with more tokenised documents behind its own, bit for bit as if built of all of them."""
        from retrieval.search.bm25.builder import BM25Builder

        builder = BM25Builder(self.tokenizer)
        builder.continue_from(self)
        builder.add_tokens(corpus)
        return builder.finish()

    def remove(self, places: Iterable[int]) -> BM25Index:
        """The index without these documents, bit for bit as if built of the others, which move up.

        Raises:
            InputError: a place is no document of the index.
        """
        from retrieval.search.bm25.builder import without

        return without(self, places)

    @property
    def matrix(self) -> Any:
        """The terms × documents weights as a `scipy.sparse.csr_array` that shares this index's memory."""
        from scipy.sparse import csr_array

        shape = (len(self.vocabulary), self.n_documents)
        return csr_array((self.weights, self.docs, self.indptr), shape=shape)

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """float64[D]: the score of every document; a repeated query word counts again, an unknown one
        nothing.
        """
        out = np.zeros(self.n_documents)
        for term in known_ids(self.vocabulary, query):
            start, end = self.indptr[term], self.indptr[term + 1]
            out[self.docs[start:end]] += self.weights[start:end]
        return out

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """float64[high - low]: the scores of documents low to high - 1 alone, at the collection's IDF."""
        out = np.zeros(high - low)
        for term in known_ids(self.vocabulary, query):
            start, end = int(self.indptr[term]), int(self.indptr[term + 1])
            docs = self.docs[start:end]
            first, last = np.searchsorted(docs, (low, high))
            if first < last:
                out[docs[first:last] - low] += self.weights[start + first : start + last]
        return out

    def search(self, query: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k documents (int64) and their scores, ties by the earlier document."""
        if self.is_large:
            places, scores = self.search_batch([query], k, threads=1)
            return places[0], scores[0]
        scores = self.scores(query)
        best = top_k(scores, k)
        return best, scores[best]

    def search_batch(
        self, queries: Sequence[Sequence[str]], k: int, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` of many queries: (places int64[Q, k'], scores float64[Q, k']), k' = min(k, D).

        Args:
            threads: how many search at a time in a large index; None: as many as this process may use cores.
        """
        if not self.is_large:
            return _one_by_one(self, queries, k)
        from retrieval.search.bm25.maxscore import search_batch

        ids = [known_ids(self.vocabulary, query) for query in queries]
        return search_batch(self, ids, max(min(k, self.n_documents), 0), threads)

    @cached_property
    def is_large(self) -> bool:
        """Whether searches are compiled (`bm25_fast`): the same results, but numpy is there at once."""
        return len(self.docs) >= LARGE and float(self.bounds.min(initial=0.0)) >= 0


def _one_by_one(index: Ranker, queries: Sequence[Sequence[str]], k: int) -> tuple[np.ndarray, np.ndarray]:
    k = max(min(k, index.n_documents), 0)
    places, scores = np.zeros((len(queries), k), dtype=np.int64), np.zeros((len(queries), k))
    for number, query in enumerate(queries):
        places[number], scores[number] = index.search(query, k)
    return places, scores
