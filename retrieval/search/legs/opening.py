"""Leg `opening`: rank the thread's opening post, which many replies answer."""

from __future__ import annotations

import numpy as np

from retrieval.search.legs.leg import LegQuery, LegRanking


def rank(query: LegQuery) -> LegRanking:
    """Rank the opening post alone. The ranking is empty if that post is no candidate."""
    return LegRanking(np.arange(1 if query.first_place == 0 else 0))
