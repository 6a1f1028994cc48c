"""Leg `addressed_me`: rank posts by others that name the comment's author.

People answer those who spoke to them. This is the strongest evidence for a reply that names nobody. If the
reply names a person, this leg shows which of that person's posts the reply answers.
"""

from __future__ import annotations

import numpy as np

from retrieval.search.legs.leg import LegQuery, LegRanking
from retrieval.search.legs.names_in_text import name_position


def rank(query: LegQuery) -> LegRanking:
    """Rank posts by others that name the comment's author, latest first."""
    author, candidates = query.comment.author, query.candidates
    places = [
        place
        # From the end: people answer the latest post that named them.
        for place in range(len(candidates) - 1, -1, -1)
        if candidates[place].author != author
        and name_position(candidates[place].text.casefold(), author) >= 0
    ]
    return LegRanking(np.array(places, dtype=np.int64))
