"""Measures of a retriever, one value for each record: recall, hit rate, reciprocal rank and nDCG."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: The k of recall@k and hit@k.
DEPTHS = (1, 3, 5, 10, 20)
NDCG_DEPTH = 10
#: Rank of a gold item that was not found.
MISSING = 1 << 30


@dataclass
class RankTally:
    """The ranks, counted from 1, that a leg gave to the gold items of each record.

    `ranks` is one flat list of the ranks of all records. `counts` has the number of gold items of each
    record.

    """

    ranks: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, ranking: np.ndarray, gold: np.ndarray, absent: int = 0) -> None:
        """Add the ranks of one record.

        Args:
            ranking: int64 places of the candidates, best first.
            gold: int64 places of the right candidates.
            absent: number of right items that were no candidates.
        """
        for place in gold.tolist():  # nearly always one, so a loop is faster than `isin`, which sorts
            found = np.flatnonzero(ranking == place)
            self.ranks.append(int(found[0]) + 1 if len(found) else MISSING)
        self.ranks.extend([MISSING] * absent)
        self.counts.append(len(gold) + absent)

    def measures(self) -> dict[str, np.ndarray]:
        """Return each measure by name as float64[N], one value for each of N records.

        recall@k is the share of a record's gold items among the first k. hit@k is 1 if any gold item is among
        the first k. mrr is the reciprocal rank of the first gold item. ndcg@10 has binary gains. All measures
        are defined as in trec_eval.
        """
        counts = np.array(self.counts, dtype=np.int64)
        if not len(counts):
            names = [f"{name}@{k}" for name in ("recall", "hit") for k in DEPTHS]
            return {name: np.zeros(0) for name in [*names, "mrr", f"ndcg@{NDCG_DEPTH}"]}
        # The ranks are one flat list; `reduceat` folds each record's part of it without a Python loop. Every
        # record has at least one gold item, so no part is empty.
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        ranks = np.array(self.ranks, dtype=np.int64)
        best = np.minimum.reduceat(ranks, starts)
        out: dict[str, np.ndarray] = {}
        for k in DEPTHS:
            out[f"recall@{k}"] = np.add.reduceat((ranks <= k).astype(np.int64), starts) / counts
            out[f"hit@{k}"] = (best <= k).astype(np.float64)
        out["mrr"] = np.where(best < MISSING, 1.0 / best, 0.0)
        gains = np.where(ranks <= NDCG_DEPTH, 1.0 / np.log2(ranks + 1.0), 0.0)
        # ideal[m] is the DCG of m gold items at the first m ranks.
        ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, NDCG_DEPTH + 2)))])
        out[f"ndcg@{NDCG_DEPTH}"] = np.add.reduceat(gains, starts) / ideal[np.minimum(counts, NDCG_DEPTH)]
        return out

    def summary(self) -> dict[str, Any]:
        """Return the mean of each measure over all records, and the number of records as `n`.

        The mean is None if there are no records.
        """
        n = len(self.counts)
        means = {name: round(float(v.mean()), 6) if n else None for name, v in self.measures().items()}
        return {**means, "n": n}
