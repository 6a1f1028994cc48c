"""Bootstrap intervals that resample contexts, not records: the records of one context are not independent.

A cluster bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 8) gives the
standard error, and Student's t the width. Percentiles of the resamples are too narrow where contexts are few:
`tests/benchmarks/interval_coverage.py` counts how often each holds the truth. The degrees of freedom are the
effective number of contexts minus one, because a few long contexts among short ones tell less than as many
equal ones (Kish, Survey Sampling, 1965).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

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
        """Return Σabove / Σbelow over the records, a share between 0 and 1, with its interval.

        The interval is Wilson's (1927) with as many records as would have this standard error if they were
        independent (Dean and Pagano, Evaluating Confidence Interval Methods for Binomial Proportions in
        Clustered Surveys, 2015), and with Student's t. It stays between 0 and 1, and has a width also where
        all answers are right or all are wrong.

        Args:
            above: float64[N].
            below: float64[N], 1 for each record that counts.
            confidence: probability that the interval holds the true ratio.

        Returns:
            `{value, low, high, n}`, where n is Σbelow. The first three are None if n is 0, and the bounds are
            None if all records that count are of one context.

        Raises:
            ValueError: the ratio is not between 0 and 1.
        """
        total = float(below.sum())
        n = round(total)
        if total == 0:
            return {"value": None, "low": None, "high": None, "n": 0}
        value = float(above.sum()) / total
        if not 0 <= value <= 1:
            raise ValueError(f"a share of {value:g}; expected one between 0 and 1")
        counts = self._by_context(below)
        if np.count_nonzero(counts) < 2:
            return {"value": round(value, 6), "low": None, "high": None, "n": n}
        freedom, variance = _freedom(counts), self._variance(above, counts)
        # Without any spread, contexts count as records.
        effective = min(value * (1 - value) / variance, total) if variance else freedom + 1
        t = float(-stdtrit(freedom, (1 - confidence) / 2))
        share = t * t / effective
        centre = (value + share / 2) / (1 + share)
        half = float(np.sqrt(value * (1 - value) * share + share * share / 4)) / (1 + share)
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        return {"value": round(value, 6), "low": round(low, 6), "high": round(high, 6), "n": n}

    def difference(
        self, one: np.ndarray, other: np.ndarray, confidence: float = CONFIDENCE
    ) -> dict[str, Any]:
        """Return the mean difference of two systems on the same records, one minus other.

        Args:
            one: float64[N], a system's value for each record.
            other: float64[N], the other system's.
            confidence: probability that the interval holds the true difference.

        Returns:
            `{value, low, high, n, contexts, p}`. The interval is the value ± t · standard error, with the
            standard error of the resamples. `p` is the probability of a difference at least as large if there
            is none (two-sided). The bounds are None, and p is 1, if all records are of one context.
        """
        return self._mean(one - other, confidence)

    def over_seeds(self, values: np.ndarray, confidence: float = CONFIDENCE) -> dict[str, Any]:
        """Return the mean of several trainings on the same records, with an interval for both sources.

        The variance is that of the mean over contexts plus that of the mean over trainings, with the degrees
        of freedom of their sum (Satterthwaite, An Approximate Distribution of Estimates of Variance
        Components, 1946). What a training does otherwise in each context counts in both, so the interval is
        rather too wide than too narrow.

        Args:
            values: float64[seeds, N], the values, or the differences of two systems, with each training seed.
            confidence: probability that the interval holds the mean over all seeds and contexts.

        Returns:
            What `difference` returns, with `by_seed` (the mean with each seed) and `spread` (their standard
            deviation; None with one seed).
        """
        means = values.mean(axis=1) if values.size else np.zeros(0)
        spread = float(means.std(ddof=1)) if len(means) > 1 else None
        return {
            **self._mean(values.mean(axis=0), confidence, spread, len(values)),
            "by_seed": [round(float(mean), 6) for mean in means],
            "spread": None if spread is None else round(spread, 6),
        }

    def _mean(
        self, values: np.ndarray, confidence: float, spread: float | None = None, seeds: int = 1
    ) -> dict[str, Any]:
        """Return the mean of values float64[N]; `spread` is that of the trainings whose mean they are."""
        n = len(values)
        counts = self._by_context(np.ones(n))
        found = {"value": None, "low": None, "high": None, "n": n, "contexts": len(counts), "p": 1.0}
        if not n:
            return found
        value = float(values.mean())
        if len(counts) < 2:
            return found | {"value": round(value, 6)}
        variance = self._variance(values, counts)
        freedom = _freedom(counts)
        if spread:
            of_seeds = spread**2 / seeds
            freedom = (variance + of_seeds) ** 2 / (variance**2 / freedom + of_seeds**2 / (seeds - 1))
            variance += of_seeds
        error = float(np.sqrt(variance))
        half = float(-stdtrit(freedom, (1 - confidence) / 2)) * error
        p = 2 * float(stdtr(freedom, -abs(value) / error)) if error else float(value == 0)
        # The least p of any test that exchanges the systems within contexts. Without it, two contexts with
        # the same difference, and so no spread, would be proof.
        moved = np.count_nonzero(self._by_context(values))
        return found | {
            "value": round(value, 6),
            # With two or three contexts, t can be larger than any difference of shares.
            "low": round(max(value - half, -1.0), 6),
            "high": round(min(value + half, 1.0), 6),
            "p": min(1.0, max(p, 2.0 ** (1 - moved))),
        }

    def _by_context(self, values: np.ndarray) -> np.ndarray:
        """Sum values of records over each context, float64[contexts]."""
        return np.bincount(self.membership, weights=values, minlength=self.draws.shape[1])

    def _variance(self, above: np.ndarray, counts: np.ndarray) -> float:
        """Return the variance of Σabove / Σcounts; 0 if all contexts have the same ratio."""
        # Summed by context first: a resample is then a row of one matrix product, whatever the number of
        # records.
        up, down = self.draws @ self._by_context(above), self.draws @ counts
        # A resample may hold no record that counts.
        drawn = up[down > 0] / down[down > 0]
        n = np.count_nonzero(counts)
        # The factor, because the resamples spread as the contexts do divided by n and not by n - 1.
        variance = float(drawn.var()) * n / (n - 1)
        # Rounded sums of the resamples differ in the last digits, also where each resample has one value.
        return 0.0 if variance < 1e-13 else variance


def _freedom(counts: np.ndarray) -> float:
    """Return the degrees of freedom of contexts with so many records each."""
    # At least a little above zero, where t is not defined: one long context and a few single records.
    return max(float(counts.sum() ** 2 / (counts**2).sum()) - 1, 0.1)
