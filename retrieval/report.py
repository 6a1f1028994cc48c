"""What a build says about one task: counts, drops with reasons, retriever quality, prompt lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrieval.corpus import Tally
from retrieval.recall import RankTally

#: (stage of the work, done, total); total is 0 where it is not known yet
Progress = Callable[[str, int, int], None]

WORD_BOUNDS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass
class TaskReport:
    """Gathers the numbers of one task while its records pass by."""

    tally: Tally = field(default_factory=Tally)
    ranks: dict[str, dict[str, RankTally]] = field(default_factory=dict)
    records: Counter[str] = field(default_factory=Counter)
    with_oracle: Counter[str] = field(default_factory=Counter)
    contexts: dict[str, set[str]] = field(default_factory=dict)
    words: list[int] = field(default_factory=list)

    def add_record(self, record: dict[str, Any]) -> None:
        """Counts a record as written."""
        split = record["split"]
        self.records[split] += 1
        self.with_oracle[split] += record["oracle_in_context"]
        self.contexts.setdefault(split, set()).add(record["context_id"])
        self.words.append(record["input"].count(" ") + record["input"].count("\n") + 1)

    def add_ranking(
        self, split: str, leg: str, ranking: np.ndarray, gold: np.ndarray, absent: int = 0
    ) -> None:
        """Counts where a leg ranked the gold places of one record."""
        self.ranks.setdefault(split, {}).setdefault(leg, RankTally()).add(ranking, gold, absent)

    def summary(self) -> dict[str, Any]:
        """The task's part of `metrics.json`."""
        words = np.array(self.words or [0])
        counts, _ = np.histogram(words, bins=[0, *WORD_BOUNDS, np.iinfo(np.int64).max])
        splits = ("train", "test")
        return {
            **self.tally.as_dict(),
            "records": {split: self.records[split] for split in splits},
            "contexts": {split: len(self.contexts.get(split, ())) for split in splits},
            "oracle_in_context": {
                split: round(self.with_oracle[split] / self.records[split], 6)
                if self.records[split]
                else None
                for split in splits
            },
            "retrieval": {
                split: {leg: tally.summary() for leg, tally in sorted(legs.items())}
                for split, legs in sorted(self.ranks.items())
            },
            "prompt_words": {
                "mean": round(float(words.mean()), 2),
                "p50": int(np.percentile(words, 50)),
                "p95": int(np.percentile(words, 95)),
                "max": int(words.max()),
                "histogram": {"up_to": [*WORD_BOUNDS, None], "counts": counts.tolist()},
            },
        }
