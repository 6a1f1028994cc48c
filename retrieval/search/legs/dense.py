"""Leg `dense`: rank candidates by the cosine of their embedding with the comment's embedding."""

from __future__ import annotations

from retrieval.search.legs.leg import LegQuery, LegRanking, rank_by_score


def rank(query: LegQuery) -> LegRanking:
    """Rank all candidates by the cosine with the comment's embedding."""
    return rank_by_score(query.similarities["dense"])
