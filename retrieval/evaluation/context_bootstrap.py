"""Bootstrap intervals that resample contexts, not records: the records of one context are not independent.

Percentile intervals of a cluster bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapters 8 and 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
#: Resamples that are drawn at a time, which bounds the memory of the integer draws.
_CHUNK = 250


@dataclass(frozen=True)
class ContextBootstrap:
    """Bootstrap resamples of the contexts.

    Attributes:
        membership: int64[N], the context of each record.
        draws: float32[resamples, contexts], how often each context was drawn.
    """

    membership: np.ndarray
    draws: np.ndarray

    @classmethod
    def over(cls, contexts: Sequence[str], seed: int, resamples: int) -> ContextBootstrap:
        """Draw the resamples for records of the given contexts.

        Args:
            contexts: id of the context of each record.
            seed: seed of the draws.
            resamples: number of resamples.
        """
        # Through `object`, because numpy makes floats of an empty list.
        names, membership = np.unique(np.array(contexts, dtype=object).astype(str), return_inverse=True)
        n = len(names)
        if not n:
            return cls(membership, np.zeros((resamples, 0)))
        rng = np.random.default_rng(seed)
        parts = [
            # Only how often each context is drawn matters, not the order. One multinomial draw gives these
            # counts. Counts below 2^24 are exact in float32, which halves the memory.
            rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - at)).astype(np.float32)
            for at in range(0, resamples, _CHUNK)
        ]
        return cls(membership, np.concatenate(parts))

    def ratio(self, above: np.ndarray, below: np.ndarray, confidence: float = CONFIDENCE) -> dict[str, Any]:
        """Return Σabove / Σbelow over the records, with its interval.

        Args:
            above: float64[N].
            below: float64[N], 1 for each record that counts.
            confidence: share of the resamples in the interval.

        Returns:
            `{value, low, high, n}`, where n is Σbelow. The first three are None if n is 0.
        """
        total = float(below.sum())
        n = round(total)
        if total == 0:
            return {"value": None, "low": None, "high": None, "n": 0}
        width = self.draws.shape[1]
        # Summed by context first: a resample is then a row of one matrix product, whatever the number of
        # records.
        up = self.draws @ np.bincount(self.membership, weights=above, minlength=width)
        down = self.draws @ np.bincount(self.membership, weights=below, minlength=width)
        # A resample may hold no record that counts.
        drawn = up[down > 0] / down[down > 0]
        outside = 50 * (1 - confidence)
        low, high = np.percentile(drawn, [outside, 100 - outside])
        value = float(above.sum()) / total
        return {"value": round(value, 6), "low": round(float(low), 6), "high": round(float(high), 6), "n": n}
