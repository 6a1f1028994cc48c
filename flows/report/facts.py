"""The facts of one run, which the report shows and which are read from the artifacts.

All facts come from the artifacts and none from the running pipeline, so the report of a cached run equals the
report of the original run. A stage that did not run and a missing file are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.configuration.gates import TRAINED_FIRST
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import MANIFEST, ArtifactRef, Manifest, read_manifest
from retrieval.settings.task_registry import TASKS

Row = dict[str, Any]

EXAMPLES = 5  # of right answers and of wrong ones
SAMPLES = 10  # of training records


@dataclass(frozen=True)
class Judged:
    """A held-out record, the answer of each system, and whether the shown system is right."""

    record: Row
    answers: Mapping[str, str]
    right: bool


@dataclass(frozen=True)
class RunFacts:
    """The artifacts of one run.

    Attributes:
        config: configuration of the run.
        folders: stage name to artifact folder, in the order in which the stages ran.
        manifests: stage name to manifest, in the same order.
    """

    config: PipelineConfig
    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifest]

    @classmethod
    def read(cls, config: PipelineConfig, references: Iterable[ArtifactRef]) -> RunFacts:
        """Read the manifests of the referenced artifacts, leaving out artifacts without a valid manifest."""
        # A damaged manifest is not an error, so that the report can still show the other stages.
        folders = {item.stage: Path(item.path) for item in references}
        found = {name: read_manifest(folder / MANIFEST) for name, folder in folders.items()}
        manifests = {name: manifest for name, manifest in found.items() if manifest is not None}
        return cls(config, {name: folders[name] for name in manifests}, manifests)

    def json(self, stage: str, name: str) -> Any:
        """Read a JSON file of a stage's artifact; return an empty mapping for a missing file."""
        path = self.file(stage, name)
        return json.loads(path.read_text(encoding="utf-8")) if path else {}

    def file(self, stage: str, name: str) -> Path | None:
        """Return the path of a file of a stage's artifact; None for a missing file."""
        folder = self.folders.get(stage)
        return folder / name if folder and (folder / name).is_file() else None

    def training(self, stage: str) -> list[Row]:
        """Return the rows of a phase's `metrics.jsonl`, one row for each step."""
        path = self.file(stage, "metrics.jsonl")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path else []

    @cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """Content of the evaluation's `metrics.json`."""
        return self.json("evaluate", "metrics.json")

    @cached_property
    def systems(self) -> Mapping[str, Mapping[str, Any]]:
        """Scores as a mapping of system to metric to {value, low, high, n}."""
        return self.evaluation.get("systems", {})

    @cached_property
    def context(self) -> Mapping[str, Any]:
        """Metrics of the records by task, from `metrics.json` of `build-context`."""
        return self.json("build-context", "metrics.json").get("tasks", {})

    @cached_property
    def shown_system(self) -> str | None:
        """The most trained system with scores, whose answers the report shows."""
        return next((name for name in TRAINED_FIRST if name in self.systems), None)

    def samples(self, count: int) -> list[Row]:
        """Return `count` training records, in equal shares of the tasks, chosen by a digest of their ids."""
        path = self.file("build-context", "records.parquet")
        if path is None:
            return []
        ids = [row for row in _columns(path, ["id", "task", "split"]) if row["split"] == "train"]
        by_task: dict[str, list[str]] = {}
        for row in ids:
            # Ids first, whole records for the few chosen ones: a corpus may have millions of rows.
            by_task.setdefault(row["task"], []).append(row["id"])
        # Reversed by name, so that threads, the main task, come first if the count cannot be divided equally.
        queues = [_shuffled(names)[:count] for _, names in sorted(by_task.items(), reverse=True)]
        chosen = [queue[place] for place in range(count) for queue in queues if place < len(queue)][:count]
        return _records(path, chosen)

    @cached_property
    def judged(self) -> list[Judged]:
        """Held-out comments that the shown system answered right, and others that it answered wrong.

        At most `EXAMPLES` of each kind are chosen by a digest of their ids, so the choice is not biased.
        """
        records = self.file("build-context", "records.parquet")
        predictions = self.file("evaluate", "predictions.parquet")
        if records is None or predictions is None or self.shown_system is None:
            return []
        answers: dict[str, dict[str, str]] = {}
        for row in _columns(predictions, ["id", "system", "choice", "text"]):
            # A choice has no text and a written answer no choice, so one of the two columns is filled.
            answers.setdefault(row["id"], {})[row["system"]] = row["choice"] or row["text"] or ""
        # Only a choice is right or wrong as a whole; written answers have scores between.
        chosen = {name for name, entry in TASKS.items() if entry.facts.answers == "choice"}
        was_right = {
            row["id"]: means_gold(answers[row["id"]][self.shown_system], row)
            for row in _columns(records, ["id", "gold", "task", "context_ids", "oracle_ids"], answers)
            # A message that starts a conversation has no right post to show.
            if row["task"] in chosen and row["oracle_ids"] and self.shown_system in answers[row["id"]]
        }
        # One order for both lists, so that the choice of the examples does not depend on the scores.
        drawn = _shuffled(was_right)
        right = [name for name in drawn if was_right[name]][:EXAMPLES]
        wrong = [name for name in drawn if not was_right[name]][:EXAMPLES]
        rows = {row["id"]: row for row in _records(records, [*right, *wrong])}
        first = self._bm25_answers(rows)
        return [
            Judged(rows[name], {**answers[name], **first.get(name, {})}, was_right[name])
            for name in (*right, *wrong)
        ]

    def _bm25_answers(self, rows: Mapping[str, Row]) -> dict[str, dict[str, str]]:
        """Return the answers of BM25 alone: its best post, for each prompt that contains this post."""
        path = self.file("build-context", "rankings.parquet")
        if path is None:
            return {}
        found = {}
        for ranking in _columns(path, ["id", "bm25"], ids=list(rows)):
            row, best = rows[ranking["id"]], next(iter(ranking["bm25"]), None)
            if best is not None:
                places = dict(zip(row["context_ids"], row["choices"], strict=False))
                found[row["id"]] = {"bm25": places.get(best, "(a post that is not in the prompt)")}
        return found


def means_gold(answer: str, record: Row) -> bool:
    """Whether an answer like `#3 Marta` has the number of a right post, as in the scores."""
    # Imported here, because it loads numpy, which a report without thread records does not need.
    from retrieval.evaluation.answer_scores import prediction_from_answer

    gold = {prediction_from_answer(text, record).post_id for text in record["gold"]}
    return prediction_from_answer(answer, record).post_id in gold - {None}


def _columns(path: Path, names: list[str], ids: Iterable[str] | None = None) -> list[Row]:
    """Return some columns of a Parquet file as rows, of all rows or of those with the given `ids`."""
    import pyarrow.parquet as pq

    # Parquet reads the matching row groups only.
    filters = None if ids is None else [("id", "in", list(ids))]
    return (
        []
        if ids is not None and not list(ids)
        else pq.read_table(path, columns=names, filters=filters).to_pylist()
    )


def _records(path: Path, ids: list[str]) -> list[Row]:
    """Return whole records in the order of `ids`."""
    names = ["id", "instruction", "input", "output", "task", "context_ids", "gold", "choices", "source"]
    rows = {row["id"]: row for row in _columns(path, names, ids)}
    return [rows[name] for name in ids]


def _shuffled(ids: Iterable[str]) -> list[str]:
    """Return the ids in the order of their digests, which is a random but reproducible order."""
    return sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())
