"""Leg `recency`: rank the latest candidate first."""

from __future__ import annotations

import numpy as np

from retrieval.search.legs.leg import LegQuery, LegRanking


def rank(query: LegQuery) -> LegRanking:
    """Rank all candidates from the latest to the earliest.

    In a fusion, the share of a candidate falls with its distance.
    """
    return LegRanking(np.arange(len(query.candidates) - 1, -1, -1))
