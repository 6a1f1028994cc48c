"""Fuse the rankings of several legs into one ranking of the candidates of a question.

- `rrf`, reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): the sum over legs of w / (k + rank), with
  ranks from 1. The paper's k = 60 is meant for lists of a thousand; on the short lists here k = 5 is better.
- `weighted`: the sum over legs of w · (s - low) / (high - low). s are the leg's scores of this question's
  candidates, 0 for those it does not rank; low and high are their minimum and maximum. A leg without scores
  (such as recency) scores 1 / rank. If all scores are equal, every place that the leg ranks counts 1.

w is the weight of the leg, 1 if none is set. Legs are summed in the order of the mapping. Callers pass them
in the order of `retrieval.settings.legs.LEGS`, because floating-point addition is not associative: the order
of the configuration's list must not decide a tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from retrieval.search.legs.leg import LegRanking, rank_by_score


@dataclass(frozen=True)
class Fusion:
    """The settings of a fusion: the method, `k` (for `rrf` only), and the weight of each leg by name."""

    method: Literal["rrf", "weighted"]
    k: int
    weights: Mapping[str, float] = field(default_factory=dict)


def fuse(legs: Mapping[str, LegRanking], n: int, fusion: Fusion) -> np.ndarray:
    """Rank the candidates 0 to n - 1 by the fused rankings of all legs.

    Args:
        legs: ranking of each leg by name; only the part that `LegRanking.counted` returns is used.
        n: number of candidates.
        fusion: method and weights.

    Returns:
        int64[n]: all candidates, best first; the earlier candidate wins a tie.
    """
    counted = {leg: ranking.counted() for leg, ranking in legs.items()}
    if fusion.method == "weighted":
        return weighted_score_fusion(counted, n, fusion.weights)
    places = {leg: ranking.places for leg, ranking in counted.items()}
    return reciprocal_rank_fusion(places, n, fusion.k, fusion.weights)


def reciprocal_rank_fusion(
    rankings: Mapping[str, np.ndarray], n: int, k: int, weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """Rank candidates by the sum over legs of w / (k + rank).

    Args:
        rankings: int64[M] places of each leg, best first.
        n: number of candidates.
        k: constant of the method; a small k favours the first ranks.
        weights: w by leg, 1 for a leg that is not named.

    Returns:
        int64[n]: all candidates, best first; the earlier candidate wins a tie.
    """
    scores = np.zeros(n)
    for leg, ranking in rankings.items():
        weight = 1.0 if weights is None else weights.get(leg, 1.0)
        # Places in one ranking are unique, so the indexed `+=` adds every share.
        scores[ranking] += weight / (k + 1.0 + np.arange(len(ranking)))
    return rank_by_score(scores).places


def weighted_score_fusion(legs: Mapping[str, LegRanking], n: int, weights: Mapping[str, float]) -> np.ndarray:
    """Rank candidates by the weighted sum of the legs' normalised scores.

    Args:
        legs: ranking of each leg by name.
        n: number of candidates.
        weights: w by leg, 1 for a leg that is not named.

    Returns:
        int64[n]: all candidates, best first; the earlier candidate wins a tie.
    """
    total = np.zeros(n)
    for leg, ranking in legs.items():
        # Scores of different legs have different ranges (BM25 has no upper bound, cosines end at 1), so a sum
        # of raw scores would follow the leg with the largest numbers.
        total += weights.get(leg, 1.0) * _normalised(ranking, n)
    return rank_by_score(total).places


def _normalised(ranking: LegRanking, n: int) -> np.ndarray:
    """Return float64[n]: a leg's scores scaled to 0…1 over one question's candidates."""
    places, out = ranking.places, np.zeros(n)
    if not len(places):
        return out
    out[places] = 1.0 / (1.0 + np.arange(len(places))) if ranking.scores is None else ranking.scores
    low, high = out.min(), out.max()
    if high > low:
        return (out - low) / (high - low)
    # All candidates have the same score: scaling would divide by zero.
    out[places] = 1.0
    return out
