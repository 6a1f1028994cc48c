"""Leg `partner`: rank posts of the person whom the comment's author last named.

Two people in conversation stop naming each other after the first lines.
"""

from __future__ import annotations

import numpy as np

from retrieval.search.legs.leg import LegQuery, LegRanking
from retrieval.search.legs.names_in_text import named_places, places_by_author

_NOTHING = LegRanking(np.zeros(0, dtype=np.int64))


def rank(query: LegQuery) -> LegRanking:
    """Rank the partner's posts, latest first. The ranking is empty if the comment itself names a person."""
    comment, candidates = query.comment, query.candidates
    authors = [post.author for post in candidates]
    if len(named_places(comment.text, authors)):
        return _NOTHING
    # An author who names themselves in a post gives no partner.
    others = [author for author in authors if author != comment.author]
    for place in places_by_author(comment.author, authors).tolist():
        named = named_places(candidates[place].text, others)
        if len(named):
            return LegRanking(places_by_author(others[int(named[0])], authors))
    return _NOTHING
