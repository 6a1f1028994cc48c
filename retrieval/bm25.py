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
from typing import Any, Literal, Protocol

import numpy as np

from retrieval.bm25_arrays import EPSILON, K1, B
from retrieval.bm25_build import BM25Builder, without
from retrieval.text import Tokenizer
from retrieval.vocabulary import known_ids

#: Postings from which on a search is compiled; below, numpy needs no more than some tenths of a millisecond.
LARGE = 1 << 17

#: What a search reads.
SEARCH_ARRAYS = (
    "indptr",
    "docs",
    "weights",
    "bounds",
    "fences",
    "fence_starts",
    "shifts",
    "signatures",
    "bits",
)


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
        builder = BM25Builder(tokenizer)
        builder.add_tokens(corpus)
        return builder.finish()

    @classmethod
    def load(cls, folder: Path, verify: bool = False) -> BM25Index:
        """Opens a saved index without reading it; see `bm25_store.load`."""
        from retrieval.bm25_store import load

        return load(folder, verify)

    def save(self, folder: Path) -> None:
        """Writes the index as a folder, all of it or nothing; see `bm25_store.save`."""
        from retrieval.bm25_store import save

        save(self, folder)

    def add(self, corpus: Iterable[Sequence[str]]) -> BM25Index:
        """The index with more tokenised documents behind its own, bit for bit as if built of all of them."""
        builder = BM25Builder(self.tokenizer)
        builder.continue_from(self)
        builder.add_tokens(corpus)
        return builder.finish()

    def remove(self, places: Iterable[int]) -> BM25Index:
        """The index without these documents, bit for bit as if built of the others, which move up.

        Raises:
            InputError: a place is no document of the index.
        """
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
        from retrieval.bm25_fast import search_batch

        ids = [known_ids(self.vocabulary, query) for query in queries]
        return search_batch(self, ids, max(min(k, self.n_documents), 0), threads)

    @cached_property
    def is_large(self) -> bool:
        """Whether searches are compiled (`bm25_fast`): the same results, but numpy is there at once."""
        return len(self.docs) >= LARGE and float(self.bounds.min(initial=0.0)) >= 0


class RankBM25Index:
    """The same over the rank_bm25 library: for corpora of some thousand documents, and the oracle of the
    tests.
    """

    def __init__(self, corpus: Iterable[Sequence[str]], tokenizer: Tokenizer | None = None) -> None:
        from rank_bm25 import BM25Okapi

        documents = [list(document) for document in corpus]
        self.n_documents = len(documents)
        self.tokenizer = tokenizer or Tokenizer()
        # The library divides by the number of documents and of terms.
        self._okapi = BM25Okapi(documents, k1=K1, b=B, epsilon=EPSILON) if any(documents) else None

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """float64[D]: the score of every document."""
        return self._okapi.get_scores(list(query)) if self._okapi else np.zeros(self.n_documents)

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """float64[high - low]: the scores of documents low to high - 1."""
        if self._okapi is None:
            return np.zeros(high - low)
        return np.asarray(self._okapi.get_batch_scores(list(query), list(range(low, high))))

    def search(self, query: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k documents (int64) and their scores, ties by the earlier document."""
        scores = self.scores(query)
        best = top_k(scores, k)
        return best, scores[best]

    def search_batch(
        self, queries: Sequence[Sequence[str]], k: int, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` of many queries, one after the other."""
        return _one_by_one(self, queries, k)


def build_index(
    corpus: Iterable[Sequence[str]],
    backend: Literal["csr", "rank_bm25"],
    tokenizer: Tokenizer | None = None,
) -> Ranker:
    """The BM25 index of the configured backend over documents that `tokenizer` has split; both give the same
    scores.
    """
    made = RankBM25Index if backend == "rank_bm25" else BM25Index.build
    return made(corpus, tokenizer)


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """int64[min(k, D)]: places of the largest scores, best first, ties by the earlier place."""
    n = len(scores)
    k = min(k, n)
    if k <= 0:
        return np.zeros(0, dtype=np.int64)
    if k < n:
        bar = np.partition(scores, n - k)[n - k]
        above = np.flatnonzero(scores > bar)
        # Of those that tie at the bar, only the earliest may enter.
        places = np.concatenate([above, np.flatnonzero(scores == bar)[: k - len(above)]])
    else:
        places = np.arange(n)
    return places[np.lexsort((places, -scores[places]))]


def _one_by_one(index: Ranker, queries: Sequence[Sequence[str]], k: int) -> tuple[np.ndarray, np.ndarray]:
    k = max(min(k, index.n_documents), 0)
    places, scores = np.zeros((len(queries), k), dtype=np.int64), np.zeros((len(queries), k))
    for number, query in enumerate(queries):
        places[number], scores[number] = index.search(query, k)
    return places, scores
