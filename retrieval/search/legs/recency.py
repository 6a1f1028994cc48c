"""Leg `recency`: the latest candidate first."""

from __future__ import annotations

import numpy as np

from retrieval.search.legs.leg import LegQuery, LegRanking


def rank(query: LegQuery) -> LegRanking:
    """Rank all candidates from the latest to the earliest; fusion makes their shares decay with distance."""
    return LegRanking(np.arange(len(query.candidates) - 1, -1, -1))
