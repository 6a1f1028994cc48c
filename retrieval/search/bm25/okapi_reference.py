"""The slow reference: the rank_bm25 library with the interface of `Ranker`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from retrieval.search.bm25.ranker import search_one_by_one
from retrieval.search.bm25.weights import EPSILON, K1, SMALLEST, B, small_idf
from retrieval.search.top_k import top_k
from retrieval.text.normalize import Tokenizer


class RankBM25Index:
    """An index of the rank_bm25 library, for corpora of some thousand documents and as the reference of the
    tests.
    """

    def __init__(self, corpus: Iterable[Sequence[str]], tokenizer: Tokenizer | None = None) -> None:
        from rank_bm25 import BM25Okapi

        documents = [list(document) for document in corpus]
        self.n_documents = len(documents)
        self.tokenizer = tokenizer or Tokenizer()
        # The library divides by the number of documents and by the number of terms, so either must not be
        # zero.
        self._okapi = BM25Okapi(documents, k1=K1, b=B, epsilon=EPSILON) if any(documents) else None
        if self._okapi is not None and self.n_documents < SMALLEST:
            found = Counter(term for document in documents for term in set(document))
            self._okapi.idf = {term: small_idf(n, self.n_documents) for term, n in found.items()}

    def known(self, query: Sequence[str]) -> int:
        """Return how many words of a query are in a document, with repeats."""
        return sum(term in self._okapi.idf for term in query) if self._okapi else 0

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """Return float64[D]: the score of every document."""
        return self._okapi.get_scores(list(query)) if self._okapi else np.zeros(self.n_documents)

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """Score documents `low` to `high` - 1, as `Ranker.window_scores` describes.

        Args:
            query: words of the query.
            low: first document.
            high: last document + 1.

        Returns:
            float64[high - low].
        """
        if self._okapi is None:
            return np.zeros(high - low)
        return np.asarray(self._okapi.get_batch_scores(list(query), list(range(low, high))))

    def search(self, query: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best k documents (int64) and their scores. Of equal scores, the earlier document is
        first.
        """
        scores = self.scores(query)
        best = top_k(scores, k)
        return best, scores[best]

    def search_batch(
        self, queries: Sequence[Sequence[str]], k: int, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search one query after the other, as `Ranker.search_batch` describes.

        Args:
            queries: Q queries, each a list of words.
            k: number of documents to find for each query; at most D are found.
            threads: has no effect.

        Returns:
            (documents int64[Q, min(k, D)], scores float64 of the same shape), best first.
        """
        return search_one_by_one(self, queries, k)
