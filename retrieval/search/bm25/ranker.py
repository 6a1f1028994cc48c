"""The interface that the tasks use of a BM25 index, whatever the backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from retrieval.text.normalize import Tokenizer


class Ranker(Protocol):
    """A BM25 index, which scores documents against a query.

    Documents are numbered from 0 in the order in which they were added. A query is a list of words as
    `tokenizer` returns them. A repeated word counts again. An unknown word counts 0.

    """

    @property
    def n_documents(self) -> int:
        """Number of documents, D."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that splits documents and queries into words."""
        ...

    def known(self, query: Sequence[str]) -> int:
        """Return how many words of a query are in a document, with repeats."""
        ...

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """Return float64[D]: the score of every document."""
        ...

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """Score the documents `low` to `high` - 1 only, with the IDF of the whole collection.

        Args:
            query: words of the query.
            low: first document.
            high: last document + 1.

        Returns:
            float64[high - low].
        """
        ...

    def search(self, query: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best k documents (int64) and their scores (float64).

        Of equal scores, the earlier document is first.
        """
        ...

    def search_batch(
        self, queries: Sequence[Sequence[str]], k: int, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search many queries.

        Args:
            queries: Q queries, each a list of words.
            k: number of documents to find for each query; at most D are found.
            threads: number of queries to search at the same time; None: one for each core of this process.

        Returns:
            (documents int64[Q, min(k, D)], scores float64 of the same shape), best first; the earlier
            document wins a tie.
        """
        ...


def search_one_by_one(
    ranker: Ranker, queries: Sequence[Sequence[str]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search a batch of queries with one call of `Ranker.search` for each query.

    Args:
        ranker: the index.
        queries: Q queries, each a list of words.
        k: number of documents to find for each query.

    Returns:
        (documents int64[Q, min(k, D)], scores float64 of the same shape).
    """
    k = max(min(k, ranker.n_documents), 0)
    places, scores = np.zeros((len(queries), k), dtype=np.int64), np.zeros((len(queries), k))
    for number, query in enumerate(queries):
        places[number], scores[number] = ranker.search(query, k)
    return places, scores
