"""What a retriever is good for: its measures with intervals, by how far back the answer lies, by how long
the question is.

Intervals are 95 % percentile bootstrap over contexts (threads, documents), because the questions of one
context are not independent. The draws are seeded: the same ranks give the same report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrieval.evaluation.retriever_ranks import RankTally

RESAMPLES = 1000
_SEED = 0

#: (first, last) of each group; None: no end.
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
#: What the groups are judged by.
GROUP_MEASURES = ("recall@1", "recall@5", "recall@10", "mrr")


@dataclass
class Asked:
    """Of the records of one split, in the order of their ranks: context, distance (messages back to the
    nearest right one; 0 where there is no such thing) and length (words of the question).
    """

    contexts: list[str] = field(default_factory=list)
    distances: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, context: str, question: str, distance: int = 0) -> None:
        """Adds a record."""
        self.contexts.append(context)
        self.distances.append(distance)
        self.lengths.append(len(question.split()))


def intervals(
    values: np.ndarray, contexts: Sequence[str], resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), float64[M] each: 95 % intervals of the means of `values` float64[N, M] over contexts."""
    names, membership = np.unique(np.array(contexts, dtype=object).astype(str), return_inverse=True)
    n, width = len(names), values.shape[1]
    sums = np.empty((n, width + 1))
    for column in range(width):
        sums[:, column] = np.bincount(membership, weights=values[:, column], minlength=n)
    sums[:, width] = np.bincount(membership, minlength=n)
    rng = np.random.default_rng(_SEED)
    drawn = np.empty((resamples, width))
    for i in range(resamples):
        often = np.bincount(rng.integers(0, n, size=n), minlength=n).astype(np.float64)
        total = often @ sums
        drawn[i] = total[:width] / total[width]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def leg_summary(tally: RankTally, asked: Asked | None) -> dict[str, Any]:
    """A leg's measures; with `asked`, their intervals too: `{"interval": {measure: [low, high]}}`."""
    out = tally.summary()
    if asked is None or not out["n"]:
        return out
    measures = tally.measures()
    low, high = intervals(np.stack(list(measures.values()), axis=1), asked.contexts)
    bounds = zip(measures, low.tolist(), high.tolist(), strict=True)
    return out | {"interval": {name: [round(a, 6), round(b, 6)] for name, a, b in bounds}}


def grouped(tally: RankTally, asked: Asked) -> dict[str, list[dict[str, Any]]]:
    """`{"by_distance": [row], "by_length": [row]}`; a row: `{"from", "to", "n", measure: {…}}`.

    Groups without a record are left out, and so is `by_distance` where nothing has one.
    """
    measures = {name: values for name, values in tally.measures().items() if name in GROUP_MEASURES}
    contexts = np.array(asked.contexts, dtype=object)
    out = {}
    for name, sizes, groups in (
        ("by_distance", asked.distances, DISTANCES),
        ("by_length", asked.lengths, LENGTHS),
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
    low, high = intervals(values, contexts[chosen].tolist())
    for i, name in enumerate(measures):
        cells = (values[:, i].mean(), low[i], high[i])
        row[name] = dict(zip(("value", "low", "high"), (round(float(c), 6) for c in cells), strict=True))
    return row
