"""Compiled scores of a few consecutive documents, such as the posts before a comment."""

from __future__ import annotations

import numpy as np

from retrieval.search.compiled import compiled


@compiled
def add_window_scores(
    indptr: np.ndarray, docs: np.ndarray, weights: np.ndarray, terms: np.ndarray, low: int, scores: np.ndarray
) -> None:
    """Add the weights of a query's terms to the scores of documents, as `BM25Index.window_scores` does.

    The sums equal those of `window_scores` bit by bit.

    Args:
        indptr: int64[T + 1], where the postings of each term begin and end.
        docs: int32, the documents of all postings, ascending within a term.
        weights: float64, their weights.
        terms: int64, term ids in the order of the query's words.
        low: the first document.
        scores: float64[documents], those of `low` and the documents behind it; changed.
    """
    for term in terms:
        end = indptr[term + 1]
        at = indptr[term] + np.searchsorted(docs[indptr[term] : end], low)
        while at < end and docs[at] < low + len(scores):
            scores[docs[at] - low] += weights[at]
            at += 1
