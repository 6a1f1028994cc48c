"""BM25 with rank_bm25's Okapi weights, exactly, over sparse postings.

rank_bm25 rebuilds Python lists at every query; here the weight of every (term, document) pair is computed
once and a query adds up a few slices. Every floating-point operation runs in the library's order, so the
scores are bitwise its scores. A term in more than half of the documents gets epsilon times the mean IDF
instead of its negative one (Trotman et al. 2014, as rank_bm25 has it). The IDF is the collection's, also
where a ranking is restricted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np

K1 = 1.5
B = 0.75
EPSILON = 0.25


class Ranker(Protocol):
    """What the tasks need of a BM25 index."""

    @property
    def n_documents(self) -> int:
        """D."""
        ...

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """float64[D]: the score of every document."""
        ...

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """float64[high - low]: the scores of documents low to high - 1."""
        ...


@dataclass(frozen=True)
class BM25Index:
    """Postings by term: documents `docs[indptr[t]:indptr[t+1]]` (ascending) with their `weights` (float64).

    This is the CSR layout of a terms × documents matrix; `matrix` gives it as scipy's.
    """

    vocabulary: dict[str, int]
    indptr: np.ndarray
    docs: np.ndarray
    weights: np.ndarray
    n_documents: int

    @classmethod
    def build(cls, corpus: Iterable[Sequence[str]]) -> BM25Index:
        """Indexes tokenised documents; an empty corpus gives an index that finds nothing."""
        documents = list(corpus)
        n_documents = len(documents)
        lengths = np.fromiter((len(d) for d in documents), dtype=np.int64, count=n_documents)
        vocabulary: dict[str, int] = {}
        n_tokens = int(lengths.sum())
        tokens = np.fromiter(
            (vocabulary.setdefault(word, len(vocabulary)) for word in chain.from_iterable(documents)),
            dtype=np.int64,
            count=n_tokens,
        )
        owners = np.repeat(np.arange(n_documents, dtype=np.int64), lengths)
        # Sorted by term, then document; equal pairs counted: the term frequencies.
        pairs, frequencies = np.unique(tokens * max(n_documents, 1) + owners, return_counts=True)
        terms, docs = np.divmod(pairs, max(n_documents, 1))
        per_term = np.bincount(terms, minlength=len(vocabulary))
        indptr = np.concatenate([[0], np.cumsum(per_term)]).astype(np.int64)
        if n_tokens == 0:
            return cls(vocabulary, indptr, docs.astype(np.int32), np.zeros(0), n_documents)
        idf = _idf(per_term.tolist(), n_documents)
        average_length = n_tokens / n_documents
        norm = K1 * (1 - B + B * lengths / average_length)
        weights = idf[terms] * (frequencies * (K1 + 1) / (frequencies + norm[docs]))
        return cls(vocabulary, indptr, docs.astype(np.int32), weights, n_documents)

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
        for word in query:
            term = self.vocabulary.get(word)
            if term is not None:
                start, end = self.indptr[term], self.indptr[term + 1]
                out[self.docs[start:end]] += self.weights[start:end]
        return out

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """float64[high - low]: the scores of documents low to high - 1 alone, at the collection's IDF."""
        out = np.zeros(high - low)
        for word in query:
            term = self.vocabulary.get(word)
            if term is None:
                continue
            start, end = int(self.indptr[term]), int(self.indptr[term + 1])
            docs = self.docs[start:end]
            first, last = np.searchsorted(docs, (low, high))
            if first < last:
                out[docs[first:last] - low] += self.weights[start + first : start + last]
        return out

    def search(self, query: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k documents (int64) and their scores, ties by the earlier document."""
        scores = self.scores(query)
        best = top_k(scores, k)
        return best, scores[best]


class RankBM25Index:
    """The same over the rank_bm25 library: for corpora of some thousand documents, and the oracle of the
    tests.
    """

    def __init__(self, corpus: Iterable[Sequence[str]]) -> None:
        from rank_bm25 import BM25Okapi

        documents = [list(document) for document in corpus]
        self.n_documents = len(documents)
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


def build_index(corpus: Iterable[Sequence[str]], backend: Literal["csr", "rank_bm25"]) -> Ranker:
    """The BM25 index of the configured backend; both give the same scores."""
    return RankBM25Index(corpus) if backend == "rank_bm25" else BM25Index.build(corpus)


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


def _idf(document_frequencies: Sequence[int], n_documents: int) -> np.ndarray:
    """float64[V]: rank_bm25's IDF, summed in its order (first appearance), because addition is not
    associative.
    """
    values = [math.log(n_documents - n + 0.5) - math.log(n + 0.5) for n in document_frequencies]
    total = 0.0
    for value in values:
        total += value
    idf = np.array(values)
    idf[idf < 0] = EPSILON * (total / len(values))
    return idf
