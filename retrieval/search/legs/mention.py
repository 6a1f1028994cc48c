"""Leg `mention`: rank posts of the people whom the comment names."""

from __future__ import annotations

from retrieval.search.legs.leg import LegQuery, LegRanking
from retrieval.search.legs.names_in_text import named_places


def rank(query: LegQuery) -> LegRanking:
    """Rank posts whose author the comment names, in the order of `named_places`."""
    return LegRanking(named_places(query.comment.text, [post.author for post in query.candidates]))
