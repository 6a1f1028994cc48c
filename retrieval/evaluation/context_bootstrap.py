"""Bootstrap intervals that resample contexts, not records: the records of one context are not independent.

A cluster bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 8) gives the
standard error. Percentiles of the resamples are too narrow where contexts are few, and lean to the wrong side
where right answers are rare. `tests/benchmarks/evaluation/interval_coverage.py` counts how often each holds
the truth. So the bounds are those of a score interval, Wilson's for a share and Tango's for a paired
difference, of as many independent records as would have this standard error (Korn and Graubard, Confidence
Intervals for Proportions with Small Expected Number of Positive Counts, 1998; Franco, Little, Louis and Slud,
Comparative Study of Confidence Intervals for Proportions in Complex Sample Surveys, 2019), with Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

CONFIDENCE = 0.95
#: Resamples that are drawn at a time, which bounds the memory of the integer draws.
_CHUNK = 250
#: At least a little above zero, where t is not defined: one long context and a few single records.
_LEAST_FREEDOM = 0.1
#: Fewer degrees of freedom than this by kurtosis make intervals wider, and hold the truth no more often.
_LEAST_BY_KURTOSIS = 6


@dataclass(frozen=True)
class _Estimate:
    """A mean of records, and how certain it is.

    Attributes:
        gained: mean of the positive parts of the values; of a share, the share.
        lost: mean of the negative parts, as a positive number.
        variance: variance of the mean over contexts; 0 if all contexts have the same ratio.
        freedom: degrees of freedom of this variance.
        effective: effective number of contexts.
    """

    gained: float
    lost: float
    variance: float
    freedom: float
    effective: float

    @property
    def value(self) -> float:
        return self.gained - self.lost

    @property
    def records(self) -> float:
        """As many independent records as would have this variance, if the values were -1, 0 and 1.

        Without any spread between contexts, contexts count as records.
        """
        if not self.variance:
            return self.effective
        return (self.gained + self.lost - self.value**2) / self.variance

    def share(self, confidence: float) -> tuple[float, float]:
        """Return Wilson's interval (1927): all p with |value - p| <= t · √(p (1 - p) / records)."""
        spread = _quantile(self.freedom, confidence) ** 2 / self.records
        centre = (self.value + spread / 2) / (1 + spread)
        half = math.sqrt(self.value * (1 - self.value) * spread + spread * spread / 4) / (1 + spread)
        return max(0.0, centre - half), min(1.0, centre + half)

    def difference(self, confidence: float) -> tuple[float, float]:
        """Return Tango's interval (1998) of a difference of two shares of the same records."""
        spread = _quantile(self.freedom, confidence) ** 2 / self.records
        return -_tango(self.lost, self.gained, spread), _tango(self.gained, self.lost, spread)

    def p(self) -> float:
        """Return the two-sided p of a difference of 0: a bound is 0 where p is 1 - confidence."""
        if not self.value:
            return 1.0
        statistic = abs(self.value) * math.sqrt(self.records / (self.gained + self.lost))
        # Here, as below: a second of loading that building records without scores does not need.
        from scipy.special import stdtr

        return 2 * float(stdtr(self.freedom, -statistic))


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

        The interval stays between 0 and 1, and has a width also where all answers are right or all are wrong.

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
        low, high = None, None
        if np.count_nonzero(counts) > 1:
            low, high = _rounded(self._estimate(above, counts).share(confidence))
        return {"value": round(value, 6), "low": low, "high": high, "n": n}

    def difference(
        self, one: np.ndarray, other: np.ndarray, confidence: float = CONFIDENCE
    ) -> dict[str, Any]:
        """Return the mean difference of two systems on the same records, one minus other.

        Args:
            one: float64[N], a system's value for each record, between 0 and 1.
            other: float64[N], the other system's.
            confidence: probability that the interval holds the true difference.

        Returns:
            `{value, low, high, n, contexts, p}`. `p` is the probability of a difference at least as large if
            there is none (two-sided). The bounds are None, and p is 1, if all records are of one context.
        """
        return self._difference(one - other, confidence, None)

    def over_seeds(
        self, values: np.ndarray, other: np.ndarray | None = None, confidence: float = CONFIDENCE
    ) -> dict[str, Any]:
        """Return the mean of several trainings on the same records, with an interval for both sources.

        The variance is that of the mean over contexts plus that of the mean over trainings, with the degrees
        of freedom of their sum (Satterthwaite, An Approximate Distribution of Estimates of Variance
        Components, 1946). What a training does otherwise in each context counts in both, so the interval is
        rather too wide than too narrow.

        Args:
            values: float64[seeds, N], a system's values with each training seed, between 0 and 1.
            other: float64[seeds, N], another system's, which are subtracted; None: a score and no difference.
            confidence: probability that the interval holds the mean over all seeds and contexts.

        Returns:
            `{value, low, high, n, contexts}` of a score, what `difference` returns of a difference; with
            `by_seed` (the mean with each seed) and `spread` (their standard deviation; None with one seed).
        """
        given = values if other is None else values - other
        means = given.mean(axis=1) if given.size else np.zeros(0)
        spread = float(means.std(ddof=1)) if len(means) > 1 else None
        seeds = (spread, len(means)) if spread else None
        mean = given.mean(axis=0)
        found = (
            self._share(mean, confidence, seeds)
            if other is None
            else self._difference(mean, confidence, seeds)
        )
        return {
            **found,
            "by_seed": [round(float(mean), 6) for mean in means],
            "spread": None if spread is None else round(spread, 6),
        }

    def resampled(
        self, values: np.ndarray, counts: np.ndarray, confidence: float = CONFIDENCE
    ) -> tuple[float, float] | None:
        """Return the interval of a statistic between 0 and 1 that is no ratio of sums.

        Args:
            values: float64[1 + resamples], its value, and its value in each resample; NaN where it has none.
            counts: float64[contexts], the sizes of the contexts.
            confidence: probability that the interval holds the true value.

        Returns:
            (low, high); None if it has no value, or if all records are of one context.
        """
        drawn = values[1:][~np.isnan(values[1:])]
        if np.isnan(values[0]) or np.count_nonzero(counts) < 2 or not len(drawn):
            return None
        value = float(values[0])
        # As if each context had the same value: then it is not known that few of them make the variance.
        estimate = _estimate(value * counts, counts, drawn)
        estimate = replace(estimate, gained=max(value, 0.0), lost=max(-value, 0.0))
        # The adjusted Rand index may be below 0.
        return _rounded(estimate.share(confidence) if value >= 0 else estimate.difference(confidence))

    def _share(
        self, values: np.ndarray, confidence: float, seeds: tuple[float, int] | None
    ) -> dict[str, Any]:
        """Return the mean of values float64[N]; `seeds` is the spread and number of trainings behind them."""
        counts = self._by_context(np.ones(len(values)))
        found = {"value": None, "low": None, "high": None, "n": len(values), "contexts": len(counts)}
        if len(values):
            found["value"] = round(float(values.mean()), 6)
        if len(counts) > 1:
            found["low"], found["high"] = _rounded(self._estimate(values, counts, seeds).share(confidence))
        return found

    def _difference(
        self, values: np.ndarray, confidence: float, seeds: tuple[float, int] | None
    ) -> dict[str, Any]:
        """Return the mean of differences float64[N]; `seeds` as in `_share`."""
        counts = self._by_context(np.ones(len(values)))
        found = {
            "value": None,
            "low": None,
            "high": None,
            "n": len(values),
            "contexts": len(counts),
            "p": 1.0,
        }
        if len(values):
            found["value"] = round(float(values.mean()), 6)
        if len(counts) > 1:
            estimate = self._estimate(values, counts, seeds)
            found["low"], found["high"] = _rounded(estimate.difference(confidence))
            # The least p of any test that exchanges the systems within contexts. Without it, a few contexts
            # with nearly the same difference would be proof.
            moved = np.count_nonzero(self._by_context(values))
            found["p"] = min(1.0, max(estimate.p(), 2.0 ** float(1 - moved)))
        return found

    def _by_context(self, values: np.ndarray) -> np.ndarray:
        """Sum values of records over each context, float64[contexts]."""
        return np.bincount(self.membership, weights=values, minlength=self.draws.shape[1])

    def _estimate(
        self, values: np.ndarray, counts: np.ndarray, seeds: tuple[float, int] | None = None
    ) -> _Estimate:
        """Return Σvalues / Σcounts with its variance.

        Args:
            values: float64[N].
            counts: float64[contexts], what the sum is divided by.
            seeds: spread and number of the trainings whose mean the values are; None: one training.
        """
        sums = self._by_context(values)
        # Summed by context first: a resample is then a row of one matrix product, whatever the number of
        # records.
        up, down = self.draws @ sums, self.draws @ counts
        # A resample may hold no record that counts.
        estimate = _estimate(sums, counts, up[down > 0] / down[down > 0])
        if seeds:
            spread, number = seeds
            of_contexts, of_seeds = estimate.variance, spread**2 / number
            both = of_contexts + of_seeds
            freedom = both**2 / (of_contexts**2 / estimate.freedom + of_seeds**2 / (number - 1))
            estimate = replace(estimate, variance=both, freedom=freedom)
        lost = float(np.maximum(-values, 0).sum() / counts.sum())
        return replace(estimate, gained=estimate.gained + lost, lost=lost)


def share_interval(
    sums: np.ndarray, counts: np.ndarray, drawn: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """Return the interval of Σsums / Σcounts, a share, as `ContextBootstrap.ratio` does.

    It is for so many contexts that not all resamples fit into memory at a time.

    Args:
        sums: float64[contexts], what each context adds to the numerator.
        counts: float64[contexts], what each context adds to the denominator.
        drawn: float64[resamples], the ratio in each resample of the contexts.
        confidence: probability that the interval holds the true share.

    Returns:
        (low, high), both None if there are fewer than two contexts.
    """
    if np.count_nonzero(counts) < 2:
        return None, None
    return _rounded(_estimate(sums, counts, drawn).share(confidence))


def _estimate(sums: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> _Estimate:
    """Return Σsums / Σcounts as a share, with the variance of its resampled values."""
    n = int(np.count_nonzero(counts))
    # The factor, because the resamples spread as the contexts do divided by n and not by n - 1.
    variance = float(drawn.var()) * n / (n - 1)
    # Rounded sums of the resamples differ in the last digits, also where each resample has one value.
    variance = 0.0 if variance < 1e-13 else variance
    value = float(sums.sum() / counts.sum())
    effective = _effective(counts)
    freedom = effective - 1
    if variance:
        freedom = min(freedom, _freedom(sums - value * counts, n))
    return _Estimate(value, 0.0, variance, max(freedom, _LEAST_FREEDOM), effective)


def _effective(counts: np.ndarray) -> float:
    """Return the effective number of contexts: a few long ones among short ones tell less than equal ones.

    Kish, Survey Sampling, 1965.
    """
    return float(counts.sum()) ** 2 / float((counts**2).sum())


def _freedom(residuals: np.ndarray, contexts: int) -> float:
    """Return the degrees of freedom of a variance that few contexts make.

    They are those of the chi-squared distribution with the mean and variance of a sum of squares whose terms
    have the kurtosis of the residuals (Box, Some Theorems on Quadratic Forms, 1954). Where only a few
    contexts have any right answer, they are far fewer than the contexts.

    Args:
        residuals: float64[contexts], what each context has above the mean.
        contexts: number of contexts that count.
    """
    squares = residuals**2
    total = float(squares.sum())
    kurtosis = contexts * float((squares**2).sum()) / total**2 if total else 0.0
    # The kurtosis itself is badly known from few contexts, and a single right answer has the largest one.
    return max(2 * contexts / (kurtosis - 1), _LEAST_BY_KURTOSIS) if kurtosis > 1 else math.inf


def _quantile(freedom: float, confidence: float) -> float:
    """Return Student's t that both tails together leave out with the probability 1 - confidence."""
    from scipy.special import stdtrit

    return float(-stdtrit(freedom, (1 - confidence) / 2))


def _tango(gained: float, lost: float, spread: float) -> float:
    """Return the upper bound of a paired difference.

    It is the largest d with |gained - lost - d| <= √(spread · v(d)), where v(d) is the variance of one record
    under the likeliest probabilities whose difference is d (Tango, Equivalence Test and Confidence Interval
    for the Difference in Proportions for the Paired-Sample Design, 1998).

    Args:
        gained: share of records that only the first system has right.
        lost: share of records that only the second system has right.
        spread: square of the quantile, divided by the number of records.
    """
    value = gained - lost
    inside, outside = value, 1.0
    # Halving 40 times is exact to 12 digits.
    for _ in range(40):
        tried = (inside + outside) / 2
        linear = (2 - gained + lost) * tried - gained - lost
        only_lost = (math.sqrt(linear**2 + 8 * lost * tried * (1 - tried)) - linear) / 4
        variance = 2 * only_lost + tried * (1 - tried)
        if (tried - value) ** 2 <= spread * variance:
            inside = tried
        else:
            outside = tried
    return inside


def _rounded(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    return round(float(low), 6), round(float(high), 6)
