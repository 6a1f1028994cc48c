"""Comparison of every two systems on the same records: paired interval, McNemar's test, Holm's correction.

The verdict is that of the paired test over contexts, corrected for the number of pairs (Holm, A Simple
Sequentially Rejective Multiple Test Procedure, 1979). McNemar's test (1947) counts records as independent, so
it is shown beside it and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from retrieval.evaluation.context_bootstrap import CONFIDENCE, ContextBootstrap

Verdict = Literal["better", "worse", "not separable"]


def compare_systems(
    contexts: Sequence[str],
    systems: Mapping[str, Mapping[str, np.ndarray]],
    *,
    seed: int,
    resamples: int,
) -> dict[str, list[dict[str, Any]]]:
    """Compare every two systems by each measure that both have.

    Args:
        contexts: id of the context of each record.
        systems: system to measure to float64[N], one value for each record.
        seed: seed of the resamples.
        resamples: number of bootstrap resamples.

    Returns:
        Measure to rows. A row compares the system `one` with the system `other`, which comes before it in
        `systems`: what `ContextBootstrap.difference` returns, `p_holm` (p corrected over the rows of the
        measure) and `verdict`; of measures whose values are 0 and 1, what `discordant` returns too.
    """
    resampled = ContextBootstrap.over(contexts, seed, resamples)
    measures = {name: None for values in systems.values() for name in values}
    return {measure: _table(resampled, systems, measure) for measure in measures}


def compare_seeds(
    contexts: Sequence[str],
    systems: Mapping[str, Mapping[str, np.ndarray]],
    shown: str | None,
    *,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Return each system's mean over training seeds, and how one system compares with each other one.

    Args:
        contexts: id of the context of each record.
        systems: system to measure to float64[seeds, N].
        shown: name of the system that is compared with each other one; None: none is.
        seed: seed of the resamples.
        resamples: number of bootstrap resamples.

    Returns:
        Measure to `{"systems": {name: mean}, "comparisons": [row]}`. A mean is what
        `ContextBootstrap.over_seeds` returns. Rows are like those of `compare_systems`, of the
        differences with each seed; p is corrected over them.
    """
    resampled = ContextBootstrap.over(contexts, seed, resamples)
    found = {}
    for measure in dict.fromkeys(name for given in systems.values() for name in given):
        values = {name: given[measure] for name, given in systems.items() if measure in given}
        means = {name: resampled.over_seeds(given) for name, given in values.items()}
        rows = [
            {"one": shown, "other": name, **resampled.over_seeds(values[shown], given)}
            for name, given in values.items()
            if shown in values and name != shown
        ]
        found[measure] = {"systems": means, "comparisons": judged(rows)}
    return found


def _table(
    resampled: ContextBootstrap, systems: Mapping[str, Mapping[str, np.ndarray]], measure: str
) -> list[dict[str, Any]]:
    values = {name: found[measure] for name, found in systems.items() if measure in found}
    rows: list[dict[str, Any]] = [
        {
            "one": one,
            "other": other,
            **resampled.difference(values[one], values[other]),
            **discordant(values[one], values[other]),
        }
        for other, one in combinations(values, 2)
    ]
    return judged(rows)


def judged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with p corrected for all of them, and with the verdict."""
    corrected = holm([row["p"] for row in rows])
    return [
        {**row, "p_holm": p, "verdict": verdict(row["value"], p)}
        for row, p in zip(rows, corrected, strict=True)
    ]


def verdict(difference: float | None, p: float, confidence: float = CONFIDENCE) -> Verdict:
    """Return in words what a difference and its p say about a system.

    Args:
        difference: value of the system minus that of the other one; None without records.
        p: probability of such a difference if there is none.
        confidence: needed to call the system better or worse.
    """
    # The same rule as the interval's: its bound is zero where p is 1 - confidence.
    if difference is None or p >= 1 - confidence:
        return "not separable"
    return "better" if difference > 0 else "worse"


def discordant(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Count the records that only one of two systems answers rightly.

    Args:
        one: float64[N], a system's value for each record.
        other: float64[N], the other system's.

    Returns:
        `{only_one, only_other, mcnemar_p}`; empty if a value is neither 0 nor 1.
    """
    if not (np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all()):
        return {}
    only_one, only_other = int((one > other).sum()), int((one < other).sum())
    return {"only_one": only_one, "only_other": only_other, "mcnemar_p": mcnemar(only_one, only_other)}


def mcnemar(only_one: int, only_other: int) -> float:
    """Return the two-sided p of McNemar's test: the exact binomial test of the discordant records."""
    # Here: a report, which only corrects p, need not load it.
    from scipy.special import bdtr

    # Exact for every count: the usual chi-squared approximation is for tables on paper.
    n = only_one + only_other
    return min(1.0, 2 * float(bdtr(min(only_one, only_other), n, 0.5))) if n else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method; each result is at least its p-value."""
    corrected = [0.0] * len(p)
    least = 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = least
    return corrected
