"""Leg `bm25`: rank candidates by the words that they share with the comment."""

from __future__ import annotations

from retrieval.search.legs.leg import LegQuery, LegRanking, rank_by_score


def rank(query: LegQuery) -> LegRanking:
    """Rank all candidates by their BM25 scores against the comment."""
    return rank_by_score(query.similarities["bm25"])
