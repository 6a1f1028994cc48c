"""Confidence intervals of the measures of a retriever.

The measures are also grouped by the distance of the answer and by the length of the question.

Intervals are those of the evaluation (`retrieval.evaluation.context_bootstrap`): contexts (threads,
documents) are resampled, not questions, because the questions of one context are not independent. The draws
are seeded, so the same ranks give the same report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrieval.evaluation.context_bootstrap import share_interval
from retrieval.evaluation.retriever_ranks import RankTally

RESAMPLES = 1000
_SEED = 0

#: (first, last) of each group; a last of None means no end. Distances in messages, lengths in words.
DISTANCES: tuple[tuple[int, int | None], ...] = (
    (1, 1),
    (2, 2),
    (3, 5),
    (6, 10),
    (11, 20),
    (21, 50),
    (51, None),
)
LENGTHS: tuple[tuple[int, int | None], ...] = ((0, 5), (6, 10), (11, 20), (21, 40), (41, None))
#: The measures of the groups.
GROUP_MEASURES = ("recall@1", "recall@5", "recall@10", "mrr")


@dataclass
class QuestionFacts:
    """Properties of the records of one split, which group the measures of a retriever.

    Each list has one entry for each record, in the order of its ranks.

    Attributes:
        contexts: ids of the contexts.
        distances: number of messages back to the nearest right one; 0 in a task without distances.
        lengths: number of words of the question.
    """

    contexts: list[str] = field(default_factory=list)
    distances: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, context: str, question: str, distance: int = 0) -> None:
        """Add the properties of one record.

        Args:
            context: id of the context.
            question: the question's text, whose words are counted.
            distance: number of messages back to the nearest right one; 0 in a task without distances.
        """
        self.contexts.append(context)
        self.distances.append(distance)
        self.lengths.append(len(question.split()))


def intervals(
    values: np.ndarray, contexts: Sequence[str], resamples: int = RESAMPLES
) -> list[tuple[float | None, float | None]]:
    """Compute 95 % intervals of means.

    Args:
        values: float64[N, M], M measures of N records, between 0 and 1.
        contexts: context of each record.
        resamples: how many times the contexts are drawn.

    Returns:
        (low, high) of each measure; None if all records are of one context.
    """
    names, membership = np.unique(np.array(contexts, dtype=object).astype(str), return_inverse=True)
    n, width = len(names), values.shape[1]
    # Sums and counts by context, once: a draw is then one product of a vector and a matrix.
    sums = np.empty((n, width + 1))
    for column in range(width):
        sums[:, column] = np.bincount(membership, weights=values[:, column], minlength=n)
    sums[:, width] = np.bincount(membership, minlength=n)
    rng = np.random.default_rng(_SEED)
    drawn = np.empty((resamples, width))
    for i in range(resamples):
        # One draw at a time: all draws together would take resamples × contexts numbers, and a corpus has
        # many contexts.
        times_drawn = np.bincount(rng.integers(0, n, size=n), minlength=n).astype(np.float64)
        total = times_drawn @ sums
        drawn[i] = total[:width] / total[width]
    return [share_interval(sums[:, column], sums[:, width], drawn[:, column]) for column in range(width)]


def leg_summary(tally: RankTally, facts: QuestionFacts | None) -> dict[str, Any]:
    """Return a leg's measures.

    With `facts`, the measures come with their intervals: `{"interval": {measure: [low, high]}}`.
    """
    out = tally.summary()
    if facts is None or not out["n"]:
        return out
    measures = tally.measures()
    bounds = intervals(np.stack(list(measures.values()), axis=1), facts.contexts)
    return out | {"interval": {name: list(pair) for name, pair in zip(measures, bounds, strict=True)}}


def grouped(tally: RankTally, facts: QuestionFacts) -> dict[str, list[dict[str, Any]]]:
    """Return the measures of groups of records, by distance and by question length.

    Args:
        tally: ranks of the records.
        facts: properties of the records, which define the groups.

    Returns:
        `{"by_distance": [row], "by_length": [row]}`, where a row is `{"from", "to", "n", measure: {"value",
        "low", "high"}}`. Groups without a record are left out, and so is `by_distance` if no record has a
        distance.
    """
    measures = {name: values for name, values in tally.measures().items() if name in GROUP_MEASURES}
    contexts = np.array(facts.contexts, dtype=object)
    out = {}
    for name, sizes, groups in (
        ("by_distance", facts.distances, DISTANCES),
        ("by_length", facts.lengths, LENGTHS),
    ):
        if any(sizes):
            rows = (_row(measures, contexts, np.array(sizes), *group) for group in groups)
            out[name] = [row for row in rows if row["n"]]
    return out


def _row(
    measures: Mapping[str, np.ndarray], contexts: np.ndarray, sizes: np.ndarray, first: int, last: int | None
) -> dict[str, Any]:
    chosen = (sizes >= first) & (sizes <= (last if last is not None else sizes.max(initial=0)))
    row: dict[str, Any] = {"from": first, "to": last, "n": int(chosen.sum())}
    if not row["n"]:
        return row
    values = np.stack([values[chosen] for values in measures.values()], axis=1)
    bounds = intervals(values, contexts[chosen].tolist())
    for name, mean, (low, high) in zip(measures, values.mean(axis=0), bounds, strict=True):
        row[name] = {"value": round(float(mean), 6), "low": low, "high": high}
    return row
