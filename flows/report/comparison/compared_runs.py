"""The facts of a comparison of runs: what differs in their settings, scores, and answers record by record.

Each run is compared with the first one. Both have their values of a measure in `record_values.parquet`, so a
difference is paired: over the records that both have answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flows.configuration.gates import TRAINED_FIRST
from flows.engine.artifact_store import Manifest, Store
from flows.engine.manifest_index import flatten
from flows.housekeeping.stored_runs import StoredRun
from jora_core.base.errors import InputError
from retrieval.evaluation.comparisons import compare_systems, judged
from retrieval.settings.task_registry import TASKS

Row = Mapping[str, Any]
EVALUATE, RECORDS = "evaluate", "build-context"
RECORD_VALUES, PREDICTIONS = "record_values.parquet", "predictions.parquet"
CHANGED_RECORDS = 10
NOT_SET = "(not set)"
# The measure that says whether an answer is right, by task; the first that a run has.
_RIGHT = ("reply@1", "denotation_accuracy", "exact_match")
# Place of the right post among those of the prompt, counted from its end: the least of each group, its name.
_PLACES = (
    (6, "right post: sixth last or before"),
    (2, "right post: second to fifth last"),
    (1, "right post: last"),
)


@dataclass(frozen=True)
class ComparedRun:
    """One of the compared runs, with its whole artifacts.

    Attributes:
        name: letter of the run: A for the first.
        run: the run as the store lists it.
        folders: stage to folder of the artifact.
        manifests: stage to manifest.
    """

    name: str
    run: StoredRun
    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifest]

    @classmethod
    def read(cls, name: str, run: StoredRun, store: Store) -> ComparedRun:
        """Verify and read the artifacts of a run, and those that they were made from.

        Args:
            name: the run's name in tables.
            run: the run, as the store lists it.
            store: the store with its artifacts.

        Raises:
            InputError: the evaluation of the run is missing or damaged.
        """
        folders: dict[str, Path] = {}
        manifests: dict[str, Manifest] = {}
        for stage, key in sorted(run.artifacts):
            store.fetch(stage, key)
            check = store.check(stage, key)
            if check.manifest is not None:
                folders[stage], manifests[stage] = store.path(stage, key), check.manifest
            elif stage == EVALUATE:
                raise InputError(
                    f"run {run.record.id}: its evaluation is damaged: {check.damage}; run it again"
                )
        if EVALUATE not in manifests or not (folders[EVALUATE] / RECORD_VALUES).is_file():
            raise InputError(
                f"run {run.record.id} has no evaluation with {RECORD_VALUES}; compare runs that have "
                "finished the stage evaluate, which `jora runs` lists"
            )
        return cls(name, run, folders, manifests)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings that decided an artifact, by dotted key as for `--set`."""
        return {
            key: value for manifest in self.manifests.values() for key, value in flatten(manifest["config"])
        }

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Path of each input file to its SHA-256."""
        return {
            item["path"]: item["sha256"]
            for manifest in self.manifests.values()
            for item in manifest["inputs"].values()
        }

    @cached_property
    def code(self) -> dict[str, str]:
        """Path of each source file to its SHA-256."""
        return {
            label: digest
            for manifest in self.manifests.values()
            for label, digest in manifest["code"].items()
        }

    @cached_property
    def scores(self) -> Mapping[str, Any]:
        """The content of the evaluation's `metrics.json`."""
        return json.loads((self.folders[EVALUATE] / "metrics.json").read_text(encoding="utf-8"))

    @cached_property
    def values(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """Task, measure and system to record id to value."""
        found: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in _read(self.folders[EVALUATE] / RECORD_VALUES):
            found.setdefault((row["task"], row["measure"], row["system"]), {})[row["id"]] = row["value"]
        return found

    @cached_property
    def contexts(self) -> dict[str, str]:
        """Record id to the id of its context."""
        rows = _read(self.folders[EVALUATE] / RECORD_VALUES, ["id", "context_id"])
        return {row["id"]: row["context_id"] for row in rows}

    @cached_property
    def last_system(self) -> str:
        """The system of the exported model: the one with the most training."""
        systems = self.scores["systems"]
        return next((name for name in TRAINED_FIRST if name in systems), next(iter(systems)))

    def answers(self, task: str, ids: Sequence[str]) -> dict[str, str]:
        """Return the answers of the run's last system to some records of a task, by record id."""
        path = self.folders[EVALUATE] / PREDICTIONS
        filters = [("task", "=", task), ("system", "=", self.last_system), ("id", "in", list(ids))]
        rows = _read(path, ["id", "choice", "text"], filters) if path.is_file() and ids else []
        return {row["id"]: row["choice"] or row["text"] or "" for row in rows}

    def training(self, stage: str) -> list[dict[str, Any]]:
        """Return the rows of a phase's `metrics.jsonl`, one row for each step."""
        path = self.folders.get(stage, Path()) / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []

    def records(self, ids: Sequence[str] | None = None, task: str | None = None) -> dict[str, Row]:
        """Return held-out records by id: some, or all of a task without their prompts."""
        path = self.folders.get(RECORDS, Path()) / "records.parquet"
        if not path.is_file() or (ids is not None and not ids):
            return {}
        columns = ["id", "task", "oracle_in_context", "gold", "choices"]
        filters = [("task", "=", task)] if ids is None else [("id", "in", list(ids))]
        rows = _read(path, [*columns, "input"] if ids is not None else columns, filters)
        return {row["id"]: row for row in rows}


@dataclass(frozen=True)
class Difference:
    """One measure of two runs.

    Attributes:
        task: task of the records.
        measure: name of the measure.
        system: name of the system in both runs, or of a slice of its records.
        first: mean of the first run on the shared records.
        other: mean of the other run on them.
        paired: the difference, as `compare_systems` gives it; None without a shared record.
        records: number of shared records.
    """

    task: str
    measure: str
    system: str
    first: float | None
    other: float | None
    paired: Mapping[str, Any] | None
    records: int


@dataclass(frozen=True)
class ChangedRecord:
    """A record that one run answers rightly and the other wrongly.

    Attributes:
        task: task of the record.
        record: the record, with its prompt.
        answers: name of the run to its answer.
        right: names of the runs that are right.
    """

    task: str
    record: Row
    answers: Mapping[str, str]
    right: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two or more runs; each is compared with the first."""

    runs: tuple[ComparedRun, ...]
    seed: int = 0
    resamples: int = 2_000

    @property
    def first(self) -> ComparedRun:
        """The run that the others are compared with."""
        return self.runs[0]

    @property
    def others(self) -> tuple[ComparedRun, ...]:
        """The runs that are compared with the first."""
        return self.runs[1:]

    @cached_property
    def settings(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each setting that differs, with its value in each run."""
        return _differing([run.settings for run in self.runs], _shown)

    @cached_property
    def inputs(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each input file that differs, with the beginning of its digest in each run."""
        return _differing([run.inputs for run in self.runs], lambda digest: digest[:12])

    @cached_property
    def code_files(self) -> int:
        """Number of source files that differ."""
        return len(_differing([run.code for run in self.runs], str))

    @cached_property
    def differences(self) -> dict[str, list[Difference]]:
        """By the other run's name: the paired difference of each measure of each system of both runs."""
        return {other.name: self._differences(other) for other in self.others}

    @cached_property
    def unchanged(self) -> dict[str, list[str]]:
        """By the other run's name: systems with the same values in both, such as rules without a model."""
        return {
            other.name: list(
                dict.fromkeys(
                    system
                    for _, _, system in self._shared(other)
                    if all(
                        self.first.values[key] == other.values[key]
                        for key in self._shared(other)
                        if key[2] == system
                    )
                )
            )
            for other in self.others
        }

    def _shared(self, other: ComparedRun) -> list[tuple[str, str, str]]:
        return [key for key in self.first.values if key in other.values]

    def _differences(self, other: ComparedRun) -> list[Difference]:
        """Return the paired difference of each measure of each system of both runs that differs."""
        keys = [key for key in self._shared(other) if key[2] not in self.unchanged[other.name]]
        pairs = [(key[2], self.first.values[key], other.values[key]) for key in keys]
        return [
            found
            for task, measure in dict.fromkeys((task, measure) for task, measure, _ in keys)
            for found in self._compare(
                (task, measure),
                [pair for key, pair in zip(keys, pairs, strict=True) if key[:2] == (task, measure)],
            )
        ]

    @cached_property
    def slices(self) -> dict[str, list[Difference]]:
        """By the other run's name: the paired differences of the last systems on kinds of records."""
        return {other.name: self._slices(other) for other in self.others}

    def _slices(self, other: ComparedRun) -> list[Difference]:
        """Return the paired differences of the last systems on kinds of records, such as by distance."""
        found: list[Difference] = []
        for task, measure in self._right_measures(other):
            first, second = self._last_values(task, measure, other)
            kinds: dict[str, list[str]] = {}
            for name, record in self.first.records(task=task).items():
                if name in first and name in second:
                    for kind in kinds_of(record):
                        kinds.setdefault(kind, []).append(name)
            pairs = [
                (kind, {name: first[name] for name in names}, {name: second[name] for name in names})
                for kind, names in sorted(kinds.items())
            ]
            found += self._compare((task, measure), pairs)
        return found

    @cached_property
    def changed(self) -> dict[str, list[ChangedRecord]]:
        """By the other run's name: records that one of the two answers rightly."""
        return {other.name: self._changed(other) for other in self.others}

    def _changed(self, other: ComparedRun, most: int = CHANGED_RECORDS) -> list[ChangedRecord]:
        """Return records that one of the two answers rightly: half of them each, drawn by their digests."""
        drawn: list[tuple[str, str, str]] = []
        for task, measure in self._right_measures(other):
            first, second = self._last_values(task, measure, other)
            for name in first:
                if name in second and {first[name], second[name]} == {0.0, 1.0}:
                    drawn.append((self.first.name if first[name] else other.name, task, name))
        # A digest, so that nobody picks the good ones, and another run of the command shows the same.
        drawn.sort(key=lambda row: hashlib.sha256(row[2].encode()).digest())
        sides = [[row for row in drawn if row[0] == name] for name in (other.name, self.first.name)]
        kept = sides[0][: max(most // 2, most - len(sides[1]))]
        kept += sides[1][: most - len(kept)]
        records = self.first.records(ids=[name for _, _, name in kept])
        found: list[ChangedRecord] = []
        for right, task, name in kept:
            if name not in records:
                continue
            answers = {run.name: run.answers(task, [name]).get(name, "") for run in (self.first, other)}
            found.append(ChangedRecord(task, records[name], answers, (right,)))
        return found

    @cached_property
    def counts_changed(self) -> dict[str, dict[str, tuple[int, int]]]:
        """By the other run's name and task: how many records only the first, and only it, has right."""
        return {other.name: self._counts_changed(other) for other in self.others}

    def _counts_changed(self, other: ComparedRun) -> dict[str, tuple[int, int]]:
        """Return by task how many records only the first, and only the other run answers rightly."""
        found: dict[str, tuple[int, int]] = {}
        for task, measure in self._right_measures(other):
            first, second = self._last_values(task, measure, other)
            pairs = [(first[name], second[name]) for name in first if name in second]
            found[task] = (pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0)))
        return found

    def _right_measures(self, other: ComparedRun) -> list[tuple[str, str]]:
        """Return each task with the measure that says whether its answers are right, if both runs have it."""
        found: list[tuple[str, str]] = []
        for task in TASKS:
            for measure in _RIGHT:
                if all((task, measure, run.last_system) in run.values for run in (self.first, other)):
                    found.append((task, measure))
                    break
        return found

    def _last_values(
        self, task: str, measure: str, other: ComparedRun
    ) -> tuple[dict[str, float], dict[str, float]]:
        one, two = (run.values[task, measure, run.last_system] for run in (self.first, other))
        return one, two

    def _compare(
        self,
        what: tuple[str, str],
        pairs: Sequence[tuple[str, Mapping[str, float], Mapping[str, float]]],
    ) -> list[Difference]:
        """Compare the values of two runs, for each named pair of them."""
        rows: list[tuple[Difference, dict[str, Any] | None]] = []
        for name, one, two in pairs:
            shared = [record for record in one if record in two]
            values = [np.array([found[record] for record in shared]) for found in (one, two)]
            first, other = (float(column.mean()) if shared else None for column in values)
            row: dict[str, Any] | None = None
            if shared:
                (row,) = compare_systems(
                    [self.first.contexts[record] for record in shared],
                    {"first": {"value": values[0]}, "other": {"value": values[1]}},
                    seed=self.seed,
                    resamples=self.resamples,
                )["value"]
            rows.append((Difference(*what, name, first, other, None, len(shared)), row))
        # Corrected over the rows of one measure, which are read together.
        paired = iter(judged([row for _, row in rows if row is not None]))
        return [found if row is None else replace(found, paired=next(paired)) for found, row in rows]


def kinds_of(record: Row) -> list[str]:
    """Return the kinds that a record belongs to: whether its prompt has the answer, and how far it is."""
    if not record["choices"]:
        return ["answer in the prompt" if record["oracle_in_context"] else "answer not in the prompt"]
    right = [place for place, choice in enumerate(record["choices"]) if choice in record["gold"]]
    if not right:
        return ["right post: not in the prompt"]
    place = len(record["choices"]) - max(right)
    return [next(name for least, name in _PLACES if place >= least)]


def _differing(
    values: Sequence[Mapping[str, Any]], show: Callable[[Any], str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Return each name whose values differ, with the value in each mapping."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    for name in sorted({name for one in values for name in one}):
        found = [one.get(name, NOT_SET) for one in values]
        if any(value != found[0] for value in found):
            rows.append((name, tuple(NOT_SET if value is NOT_SET else show(value) for value in found)))
    return rows


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(path: Path, columns: list[str] | None = None, filters: Any = None) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=columns, filters=filters).to_pylist()
