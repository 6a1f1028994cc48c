"""Fusing what the legs of one question say about its candidates.

A leg says a ranking of places 0…n-1, best first, and may score them. Two fusions:

- `rrf`, reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): the sum over legs of w / (k + rank), rank
  from 1. Their k = 60 is made for lists of a thousand and is worse than k = 5 at these depths.
- `weighted`: the sum over legs of w · (s - lo) / (hi - lo), where s are the leg's scores of this question's
  candidates (0 where it says nothing), lo and hi their least and greatest; legs without scores of their own
  (recency, mention and such) score 1 / rank. Where all are equal, those the leg ranks count 1.

w is the leg's weight, 1 if not set. Legs are summed in the order given: callers give that of `config.LEGS`,
so that the order of a configuration's list never decides a tie by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Say:
    """What one leg says: `places` int64[m], best first, with their `scores` float[m] or None."""

    places: np.ndarray
    scores: np.ndarray | None = None


def by_score(scores: np.ndarray) -> tuple[np.ndarray, int]:
    """(all places best first with ties by the earlier one, how many of them score above zero).

    Only the places above zero have a say in a fusion: the order of the rest is mere time order.
    """
    order = np.lexsort((np.arange(len(scores)), -scores))
    return order, int((scores > 0).sum())


def fuse(
    legs: Mapping[str, Say],
    n: int,
    how: Literal["rrf", "weighted"],
    k: int,
    weights: Mapping[str, float],
) -> np.ndarray:
    """int64[n]: all candidates, best first, ties by the earlier; `k` is for `rrf`."""
    if how == "weighted":
        return weighted_score_fusion(legs, n, weights)
    return reciprocal_rank_fusion({leg: say.places for leg, say in legs.items()}, n, k, weights)


def reciprocal_rank_fusion(
    rankings: Mapping[str, np.ndarray], n: int, k: int, weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """int64[n]: all candidates by the sum over legs of w/(k + rank), ranks from 1, ties by the earlier."""
    scores = np.zeros(n)
    for leg, ranking in rankings.items():
        weight = 1.0 if weights is None else weights.get(leg, 1.0)
        scores[ranking] += weight / (k + 1.0 + np.arange(len(ranking)))
    return by_score(scores)[0]


def weighted_score_fusion(legs: Mapping[str, Say], n: int, weights: Mapping[str, float]) -> np.ndarray:
    """int64[n]: all candidates by the weighted sum of the legs' normalised scores, ties by the earlier."""
    total = np.zeros(n)
    for leg, say in legs.items():
        total += weights.get(leg, 1.0) * _normalised(say, n)
    return by_score(total)[0]


def _normalised(say: Say, n: int) -> np.ndarray:
    """float64[n]: a leg's scores between 0 and 1 over one question's candidates."""
    out = np.zeros(n)
    if not len(say.places):
        return out
    out[say.places] = 1.0 / (1.0 + np.arange(len(say.places))) if say.scores is None else say.scores
    low, high = out.min(), out.max()
    if high > low:
        return (out - low) / (high - low)
    out[say.places] = 1.0
    return out
