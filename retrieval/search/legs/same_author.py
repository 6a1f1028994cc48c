"""Leg `same_author`: rank earlier posts of the comment's author.

A line that continues what its author said just before is a reply to it.
"""

from __future__ import annotations

from retrieval.search.legs.leg import LegQuery, LegRanking
from retrieval.search.legs.names_in_text import places_by_author


def rank(query: LegQuery) -> LegRanking:
    """Rank the posts of the comment's author, latest first."""
    return LegRanking(places_by_author(query.comment.author, [post.author for post in query.candidates]))
