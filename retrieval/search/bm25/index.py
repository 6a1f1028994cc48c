"""A BM25 index over sparse postings, with the Okapi weights of rank_bm25.

rank_bm25 reads Python lists at every query. Here the weight of every (term, document) pair is computed once,
and a query adds up a few slices. Every floating-point operation runs in the library's order, so the scores
equal those of the library bit for bit. A term in more than half of the documents gets epsilon times the mean
IDF instead of its negative IDF (Trotman et al. 2014, as rank_bm25 has it). The IDF is always the one of the
whole collection, also where only some documents are ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from retrieval.search.bm25.postings import Postings
from retrieval.search.bm25.ranker import search_one_by_one
from retrieval.search.bm25.vocabulary import known_ids
from retrieval.search.top_k import top_k
from retrieval.text.normalize import Tokenizer

if TYPE_CHECKING:
    from retrieval.search.bm25.maxscore import MaxScoreSearch

#: An index with at least this many postings is searched by compiled code. A search of a smaller one takes
#: numpy a few tenths of a millisecond, which is not worth the second that it takes to load the compiler.
LARGE = 1 << 17


@dataclass(frozen=True, eq=False)
class BM25Index:
    """A BM25 index, which scores and searches documents.

    It holds the term ids by word, the postings, and the tokenizer that splits texts into words.

    `retrieval.search.bm25.builder` makes an index, `retrieval.search.bm25.folder` saves and opens it.
    """

    vocabulary: Mapping[str, int]
    postings: Postings
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        # Arrays of a saved index are mapped read-only. With the same flag on all others, numba sees one type
        # of array and compiles the search once.
        for array in self.postings:
            array.flags.writeable = False

    @property
    def n_documents(self) -> int:
        """Number of documents, D."""
        return len(self.postings.signatures)

    def known(self, query: Sequence[str]) -> int:
        """Return how many words of a query are in a document, with repeats."""
        return len(known_ids(self.vocabulary, query))

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """Return float64[D]: the score of every document."""
        indptr, docs, weights = self.postings[:3]
        out = np.zeros(self.n_documents)
        # Term by term in the order of the query's words, as the library does: another order changes the last
        # bits.
        for term in known_ids(self.vocabulary, query):
            start, end = indptr[term], indptr[term + 1]
            # A document stands at most once in a term's postings, so plain indexing adds every weight.
            out[docs[start:end]] += weights[start:end]
        return out

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """Score documents `low` to `high` - 1, with the IDF of the whole collection.

        Args:
            query: words of the query.
            low: first document.
            high: last document + 1.

        Returns:
            float64[high - low].
        """
        indptr, docs, weights = self.postings[:3]
        out = np.zeros(high - low)
        for term in known_ids(self.vocabulary, query):
            start, end = int(indptr[term]), int(indptr[term + 1])
            of_term = docs[start:end]
            # The documents of a term ascend, so the window is one slice, found without reading the others.
            first, last = np.searchsorted(of_term, (low, high))
            if first < last:
                out[of_term[first:last] - low] += weights[start + first : start + last]
        return out

    def search(self, query: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best k documents (int64) and their scores. Of equal scores, the earlier document is
        first.
        """
        # The compiled search starts no thread for one query: a thread pool costs more than the search.
        if self.is_large:
            places, scores = self.search_batch([query], k, threads=1)
            return places[0], scores[0]
        scores = self.scores(query)
        best = top_k(scores, k)
        return best, scores[best]

    def search_batch(
        self, queries: Sequence[Sequence[str]], k: int, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search many queries, as `Ranker.search_batch` describes.

        Args:
            queries: Q queries, each a list of words.
            k: number of documents to find for each query; at most D are found.
            threads: number of queries to search at the same time; None: one for each core. In a small index,
                the queries are searched one after the other.

        Returns:
            (documents int64[Q, min(k, D)], scores float64 of the same shape), best first.
        """
        if not self.is_large:
            return search_one_by_one(self, queries, k)
        ids = [known_ids(self.vocabulary, query) for query in queries]
        # The words are looked up here, under the interpreter lock; compiled code takes numbers only.
        return self._compiled_search.search(ids, max(min(k, self.n_documents), 0), threads)

    @cached_property
    def is_large(self) -> bool:
        """Whether the index uses the compiled search (`maxscore`), which has the same results.

        The compiled search needs weights that are not negative. A term's weight is negative only if the mean
        IDF is negative, which means that most terms are in more than half of the documents.
        """
        postings = self.postings
        return len(postings.docs) >= LARGE and float(postings.bounds.min(initial=0.0)) >= 0

    @cached_property
    def _compiled_search(self) -> MaxScoreSearch:
        # Here, because numba takes about a second to import, and small indexes never need it.
        from retrieval.search.bm25.maxscore import MaxScoreSearch

        return MaxScoreSearch(self.postings)
