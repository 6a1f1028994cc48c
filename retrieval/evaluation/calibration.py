"""Whether a model knows when it is right: calibration of its probabilities, accuracy of its surest answers.

The probability of an answer is the model's probability of the choice, divided by that of all valid choices.
Calibration is measured as by Guo et al. (On Calibration of Modern Neural Networks, 2017), selective accuracy
as by Geifman and El-Yaniv (Selective Classification for Deep Neural Networks, 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Bins of equal width, as in the paper.
BINS = 10
#: Shares of the answers, the surest first, whose accuracy is measured.
SHARES = tuple(k / 10 for k in range(1, 11))


def choice_probabilities(logprobs: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the probability of the likeliest choice among all choices of each record, float64[N].

    Args:
        logprobs: log-probabilities of each record's choices; each record has at least one.
    """
    # exp(best - best) / Σ exp(each - best): the exponents are at most 0, so nothing overflows.
    rows = [np.asarray(values, np.float64) for values in logprobs]
    return np.array([1 / np.exp(values - values.max()).sum() for values in rows])


def calibration(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Compare the probabilities of answers with how often they are right.

    Args:
        probabilities: float64[N], the probability of each answer, above 0 and at most 1.
        right: float64[N], 1 for each right answer, else 0.

    Returns:
        `{"n", "expected_calibration_error", "bins", "selective"}`. A row of `bins` is `{from, to, n,
        probability, accuracy}`, the means of its answers; bins without answers are left out. A row of
        `selective` is `{share, n, accuracy, least_probability}`, of that share of the answers, the surest
        first. Without answers the error is None and both lists are empty.
    """
    n = len(probabilities)
    if not n:
        return {"n": 0, "expected_calibration_error": None, "bins": [], "selective": []}
    # A bin holds its upper end and not its lower one, as in the paper.
    places = np.clip(np.ceil(probabilities * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    sums = np.bincount(places, weights=probabilities, minlength=BINS)
    hits = np.bincount(places, weights=right, minlength=BINS)
    bins = [
        {
            "from": k / BINS,
            "to": (k + 1) / BINS,
            "n": int(counts[k]),
            "probability": round(float(sums[k] / counts[k]), 6),
            "accuracy": round(float(hits[k] / counts[k]), 6),
        }
        for k in np.flatnonzero(counts).tolist()
    ]
    return {
        "n": n,
        "expected_calibration_error": round(float(np.abs(hits - sums).sum() / n), 6),
        "bins": bins,
        "selective": _selective(probabilities, right),
    }


def _selective(probabilities: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    # Answers of equal probability have no order: each counts as their mean.
    _, group = np.unique(probabilities, return_inverse=True)
    means = np.bincount(group, weights=right) / np.bincount(group)
    order = np.argsort(-probabilities, kind="stable")
    hits, sure = np.cumsum(means[group][order]), probabilities[order]
    found = []
    for share in SHARES:
        n = max(1, round(share * len(order)))
        found.append(
            {
                "share": share,
                "n": n,
                "accuracy": round(float(hits[n - 1] / n), 6),
                "least_probability": round(float(sure[n - 1]), 6),
            }
        )
    return found


def calibrations(
    rows: Sequence[Mapping[str, Any]], right: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """Return the calibration of each system that chose among valid choices.

    Args:
        rows: answers, with `id`, `system` and `choice_logprobs` (empty without choices).
        right: system to record id to 1 for a right choice, else 0. Other answers are left out.
    """
    by_system: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("choice_logprobs") and row["id"] in right.get(row["system"], ()):
            by_system.setdefault(row["system"], []).append(row)
    return {
        system: calibration(
            choice_probabilities([row["choice_logprobs"] for row in mine]),
            np.array([right[system][row["id"]] for row in mine]),
        )
        for system, mine in by_system.items()
    }
