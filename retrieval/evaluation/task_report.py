"""The report of a build about one task: counts, dropped items, retriever measures and prompt lengths."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrieval.corpus.types import Tally
from retrieval.evaluation.build_messages import warnings
from retrieval.evaluation.retriever_intervals import QuestionFacts, grouped, leg_summary
from retrieval.evaluation.retriever_ranks import RankTally
from retrieval.guards.leaks import LEAKS
from retrieval.settings.task_registry import TASKS
from retrieval.text.normalize import seeded_hash

#: Called with (step of the work, done, total); the total is 0 if it is not known yet.
Progress = Callable[[str, int, int], None]

#: Upper ends of the bars of the histogram of prompt lengths.
LENGTH_BOUNDS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
#: Records that the report shows.
EXAMPLES = 10
#: Reasons under which training items that repeat (nearly) a test item are dropped.
EXACT = ("duplicate_of_test_record", "table_also_in_test", "document_also_in_test", "thread_twice")
NEAR = ("near_duplicate_of_test_record", "table_nearly_in_test", "document_nearly_in_test")
#: Note of records that ask a message which answers none: no text holds the answer, so none can be found.
STARTS = "conversation_starts"
_SPLITS = ("train", "test")


@dataclass
class TaskReport:
    """The report of one task, collected while its records are built.

    `merge_reports` joins the reports of several shards.
    """

    tally: Tally = field(default_factory=Tally)
    ranks: dict[str, dict[str, RankTally]] = field(default_factory=dict)
    questions: dict[str, QuestionFacts] = field(default_factory=dict)
    records: Counter[str] = field(default_factory=Counter)
    with_oracle: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Counter[str]] = field(default_factory=dict)
    contexts: dict[str, set[str]] = field(default_factory=dict)
    shown: dict[str, set[str]] = field(default_factory=dict)
    words: list[int] = field(default_factory=list)
    index: dict[str, Any] = field(default_factory=dict)
    learned_fusion: dict[str, Any] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    terms: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def add_record(self, record: dict[str, Any], tokens: int | None = None) -> None:
        """Count a written record.

        `tokens` is the number of tokens of its input, or None without a tokenizer.
        """
        split = record["split"]
        self.records[split] += 1
        self.with_oracle[split] += record["oracle_in_context"]
        self.contexts.setdefault(split, set()).add(record["context_id"])
        shown = record["context_ids"] if split == "train" else record["oracle_ids"]
        # Ids of posts are unique in their thread only.
        self.shown.setdefault(split, set()).update(
            shown if TASKS[record["task"]].facts.unique_context_ids else [record["context_id"]]
        )
        self.words.append(len(record["input"].split()))
        if tokens is not None:
            self.tokens.append(tokens)
        self._keep_example(record)

    def _keep_example(self, record: dict[str, Any]) -> None:
        """Keep the record as an example if the hash of its id is among the smallest.

        This is a random choice that is the same in every build.
        """
        # A heap whose root is the record with the largest hash, the next to be replaced.
        place = -seeded_hash(0, "example", record["id"])
        if len(self.examples) < EXAMPLES:
            heapq.heappush(self.examples, (place, record))
        elif place > self.examples[0][0]:
            heapq.heapreplace(self.examples, (place, record))

    def add_question(self, split: str, context_id: str, question: str, distance: int = 0) -> None:
        """Add the properties of one record that group the measures. Call this once for each record.

        Args:
            split: split of the record.
            context_id: id of its context.
            question: text of the question.
            distance: number of messages back to the nearest right one; 0 in a task without distances.
        """
        self.questions.setdefault(split, QuestionFacts()).add(context_id, question, distance)

    def add_ranking(
        self, split: str, leg: str, ranking: np.ndarray, gold: np.ndarray, absent: int = 0
    ) -> None:
        """Add the ranks that a leg gave to the right candidates of one record.

        Args:
            split: split of the record.
            leg: name of the leg.
            ranking: int64 places of the candidates, best first.
            gold: int64 places of the right candidates.
            absent: number of right items that were no candidates.
        """
        self.ranks.setdefault(split, {}).setdefault(leg, RankTally()).add(ranking, gold, absent)

    def add_terms(self, terms: Sequence[str], known: int) -> None:
        """Count the terms of one question.

        Args:
            terms: the terms, as the index splits them.
            known: number of them that the index knows.
        """
        self.terms["query"] += len(terms)
        self.terms["unknown"] += len(terms) - known
        self.terms["single"] += sum(len(term) == 1 for term in terms)

    def note(self, split: str, what: str, count: int = 1) -> None:
        """Count an event in the building of a record, such as a quotation that was not found.

        Args:
            split: split of the record.
            what: name of the event; "" counts nothing.
            count: number of events.
        """
        if what and count:
            self.notes.setdefault(split, Counter())[what] += count

    def summary(self) -> dict[str, Any]:
        """Return the task's section of `metrics.json`."""
        answered = {
            split: self.records[split] - self.notes.get(split, Counter())[STARTS] for split in _SPLITS
        }
        out = {
            **self.tally.as_dict(),
            "records": {split: self.records[split] for split in _SPLITS},
            "contexts": {split: len(self.contexts.get(split, ())) for split in _SPLITS},
            "oracle_in_context": {
                split: round(self.with_oracle[split] / answered[split], 6) if answered[split] else None
                for split in _SPLITS
            },
            "notes": {split: dict(sorted(found.items())) for split, found in sorted(self.notes.items())},
            "guards": self._guards(),
            "retrieval": {
                split: {leg: self._leg(split, tally) for leg, tally in sorted(legs.items())}
                for split, legs in sorted(self.ranks.items())
            },
            "prompt_words": lengths(self.words),
            "examples": self._examples(),
        }
        if self.terms:
            out["query_terms"] = dict(sorted(self.terms.items()))
        out["warnings"] = warnings(
            self.terms, self.tally.read, self.records, len(self.contexts.get("train", ()))
        )
        if self.index:
            out["dense_index"] = self.index
        if self.learned_fusion:
            out["learned_fusion"] = self.learned_fusion
        if self.tokens:
            out["prompt_tokens"] = lengths(self.tokens)
        ranks = self.ranks.get("test", {})
        best = ranks.get("learned", ranks.get("fused"))
        if best is not None and "test" in self.questions:
            out["retrieval_groups"] = grouped(best, self.questions["test"])
        return out

    def _leg(self, split: str, tally: RankTally) -> dict[str, Any]:
        # Only the test split is judged, so only its measures need intervals.
        return leg_summary(tally, self.questions.get(split) if split == "test" else None)

    def _guards(self) -> dict[str, Any]:
        dropped = self.tally.dropped
        # Should be empty. It is computed from the written records, independently of the code that keeps
        # splits apart.
        both = self.shown.get("train", set()) & self.shown.get("test", set())
        return {
            "records_searched": sum(self.records.values()) + sum(dropped[name] for name in LEAKS),
            "exact_duplicates_dropped": sum(dropped[name] for name in EXACT),
            "near_duplicates_dropped": sum(dropped[name] for name in NEAR),
            "leaks_dropped": {name.removeprefix("leak_"): dropped[name] for name in LEAKS},
            "test_contexts_in_training_prompts": len(both),
        }

    def _examples(self) -> list[dict[str, Any]]:
        """Return the example records, in the order of the hashes of their ids."""
        # Cut again, because joined reports of several shards have up to `EXAMPLES` records each.
        best = sorted(self.examples, key=lambda item: (-item[0], item[1]["id"]))[:EXAMPLES]
        names = ("id", "split", "instruction", "input", "output", "gold", "oracle_in_context")
        return [{name: record[name] for name in names} for _, record in best]


def lengths(counts: Sequence[int]) -> dict[str, Any]:
    """Return the mean, quantiles and histogram of prompt lengths."""
    # A percentile of nothing is an error.
    values = np.array(counts or [0])
    bins, _ = np.histogram(values, bins=[0, *LENGTH_BOUNDS, np.iinfo(np.int64).max])
    return {
        "mean": round(float(values.mean()), 2),
        "p50": int(np.percentile(values, 50)),
        "p95": int(np.percentile(values, 95)),
        "max": int(values.max()),
        "histogram": {"up_to": [*LENGTH_BOUNDS, None], "counts": bins.tolist()},
    }
