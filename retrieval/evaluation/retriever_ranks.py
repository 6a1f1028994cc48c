"""How good a retriever is: recall, hit rate, reciprocal rank and nDCG of each record, by leg."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEPTHS = (1, 3, 5, 10, 20)
NDCG_DEPTH = 10
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

    def measures(self) -> dict[str, np.ndarray]:
        """float64[N] each, N records: recall@k (share of a record's gold within k), hit@k (any of it), mrr,
        ndcg@10 (binary gains), as trec_eval has them.
        """
        counts = np.array(self.counts, dtype=np.int64)
        if not len(counts):
            names = [f"{name}@{k}" for name in ("recall", "hit") for k in DEPTHS]
            return {name: np.zeros(0) for name in [*names, "mrr", f"ndcg@{NDCG_DEPTH}"]}
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        ranks = np.array(self.ranks, dtype=np.int64)
        best = np.minimum.reduceat(ranks, starts)
        out: dict[str, np.ndarray] = {}
        for k in DEPTHS:
            out[f"recall@{k}"] = np.add.reduceat((ranks <= k).astype(np.int64), starts) / counts
            out[f"hit@{k}"] = (best <= k).astype(np.float64)
        out["mrr"] = np.where(best < MISSING, 1.0 / best, 0.0)
        gains = np.where(ranks <= NDCG_DEPTH, 1.0 / np.log2(ranks + 1.0), 0.0)
        ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, NDCG_DEPTH + 2)))])
        out[f"ndcg@{NDCG_DEPTH}"] = np.add.reduceat(gains, starts) / ideal[np.minimum(counts, NDCG_DEPTH)]
        return out

    def summary(self) -> dict[str, Any]:
        """The mean of every measure over the records, and n; None where n is 0."""
        n = len(self.counts)
        means = {name: round(float(v.mean()), 6) if n else None for name, v in self.measures().items()}
        return {**means, "n": n}
