"""How good a retriever is: recall, hit rate and reciprocal rank by leg."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEPTHS = (1, 3, 5, 10, 20)
MISSING = 1 << 30


@dataclass
class RankTally:
    """Gathers, per record, the 1-based ranks that a leg gave to the record's gold items."""

    ranks: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, ranking: np.ndarray, gold: np.ndarray, absent: int = 0) -> None:
        """Adds a record: `ranking` and `gold` are places; `absent` counts gold that was no candidate."""
        for place in gold.tolist():  # nearly always one: a loop beats `isin`, which sorts
            found = np.flatnonzero(ranking == place)
            self.ranks.append(int(found[0]) + 1 if len(found) else MISSING)
        self.ranks.extend([MISSING] * absent)
        self.counts.append(len(gold) + absent)

    def summary(self) -> dict[str, Any]:
        """recall@k (mean share of a record's gold within k), hit@k (any of it), mrr, n; None where n is 0."""
        n = len(self.counts)
        if not n:
            empty = {f"{name}@{k}": None for name in ("recall", "hit") for k in DEPTHS}
            return {**empty, "mrr": None, "n": 0}
        counts = np.array(self.counts)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        ranks = np.array(self.ranks)
        best = np.minimum.reduceat(ranks, starts)
        out: dict[str, Any] = {"n": n}
        for k in DEPTHS:
            within = np.add.reduceat((ranks <= k).astype(np.int64), starts)
            out[f"recall@{k}"] = round(float((within / counts).mean()), 6)
            out[f"hit@{k}"] = round(float((best <= k).mean()), 6)
        out["mrr"] = round(float(np.where(best < MISSING, 1.0 / best, 0.0).mean()), 6)
        return out
