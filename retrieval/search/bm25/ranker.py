"""What the tasks need of a BM25 index, whichever backend is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from retrieval.text.normalize import Tokenizer


class Ranker(Protocol):
    """Documents, numbered from 0 in the order in which they were added, that can be scored against a query.

    A query is a list of words as `tokenizer` gives them. A repeated word counts again; an unknown one counts
    0.
    """

    @property
    def n_documents(self) -> int:
        """Number of documents, D below."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """What splits documents and queries into words."""
        ...

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """Return float64[D]: the score of every document."""
        ...

    def window_scores(self, query: Sequence[str], low: int, high: int) -> np.ndarray:
        """Score a run of documents only, at the IDF of the whole collection.

        Args:
            query: words.
            low: first document.
            high: last document + 1.

        Returns:
            float64[high - low].
        """
        ...

    def search(self, query: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best k documents (int64) and their scores (float64); the earlier one wins a tie."""
        ...

    def search_batch(
        self, queries: Sequence[Sequence[str]], k: int, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search many queries.

        Args:
            queries: Q queries.
            k: how many documents to find for each; at most D are found.
            threads: how many queries to search at the same time; None: one for each core of this process.

        Returns:
            (documents int64[Q, min(k, D)], scores float64 of the same shape), best first; the earlier
            document wins a tie.
        """
        ...


def search_one_by_one(
    ranker: Ranker, queries: Sequence[Sequence[str]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Answer `Ranker.search_batch` by one `Ranker.search` after the other.

    Args:
        ranker: what searches.
        queries: Q queries.
        k: how many documents to find for each.

    Returns:
        (documents int64[Q, min(k, D)], scores float64 of the same shape).
    """
    k = max(min(k, ranker.n_documents), 0)
    places, scores = np.zeros((len(queries), k), dtype=np.int64), np.zeros((len(queries), k))
    for number, query in enumerate(queries):
        places[number], scores[number] = ranker.search(query, k)
    return places, scores
