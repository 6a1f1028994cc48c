"""The artifacts of a store, and the runs that made or used them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flows.configuration.gates import TRAINED_FIRST
from flows.engine.artifact_store import Store
from flows.engine.run_records import RunRecord, read_records
from jora_core.base.errors import InputError

PINS = ".pins"
MAIN_MEASURES = ("reply@1", "denotation_accuracy", "exact_match", "f1")

_MILLISECONDS = 23  # characters of a time to compare: records have milliseconds, manifests microseconds

Name = tuple[str, str]  # stage and key of an artifact


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact as its manifest describes it; the files are not verified.

    Attributes:
        stage: name of the stage.
        key: key of the artifact.
        project: name of the project that computed it.
        started: ISO 8601, in UTC.
        ended: ISO 8601, in UTC.
        seconds: time that the stage took.
        size: bytes of all files.
        upstream: the artifacts that it was made from, other seeds' and other runs' included.
    """

    stage: str
    key: str
    project: str
    started: str
    ended: str
    seconds: float
    size: int
    upstream: tuple[Name, ...]

    @property
    def name(self) -> Name:
        """Stage and key."""
        return self.stage, self.key


@dataclass(frozen=True)
class StoredRun:
    """A run with the artifacts that it selected and what they need.

    Attributes:
        record: when, of which project, and how it ended.
        artifacts: the artifacts of the run that exist, and those that they were made from.
        computed: names of the stages that the run computed.
        cached: names of the stages that it found in the store.
        pinned: whether a pin keeps it.
    """

    record: RunRecord
    artifacts: frozenset[Name]
    computed: tuple[str, ...]
    cached: tuple[str, ...]
    pinned: bool

    @property
    def ended(self) -> str:
        """When the run ended or began, in ISO 8601."""
        return self.record.ended or self.record.started


@dataclass(frozen=True)
class StoreContents:
    """All artifacts of a store by stage and key, and its runs, the newest first."""

    artifacts: Mapping[Name, StoredArtifact] = field(default_factory=dict)
    runs: tuple[StoredRun, ...] = ()

    def size(self, names: Iterable[Name]) -> int:
        """Return the bytes of some artifacts."""
        return sum(self.artifacts[name].size for name in names if name in self.artifacts)

    def sizes_by_stage(self) -> dict[str, tuple[int, int]]:
        """Return the number of artifacts and their bytes by stage."""
        found: dict[str, tuple[int, int]] = {}
        for item in self.artifacts.values():
            count, size = found.get(item.stage, (0, 0))
            found[item.stage] = (count + 1, size + item.size)
        return found


def read_contents(store: Store) -> StoreContents:
    """Read all manifests and run records of a store.

    An artifact that no record and no other artifact names belongs to the run of its project in whose time it
    was made, such as another seed's training before the run was killed. Without such a run it counts as a run
    of its own. Stores of older versions have such artifacts.
    """
    artifacts = {item.name: item for item in _artifacts(store)}
    records = read_records(store)
    pins = _pins(store)
    found = [_stored_run(record, artifacts, record.id in pins) for record in records]
    named = {name for run in found for name in run.artifacts}
    used = {upstream for item in artifacts.values() for upstream in item.upstream}
    unnamed = [item for item in artifacts.values() if item.name not in named and item.name not in used]
    runs = [
        replace(run, artifacts=run.artifacts | with_upstream(made, artifacts))
        for run in found
        for made in [[item.name for item in unnamed if _made_during(run.record, item, records)]]
    ]
    named |= {name for run in runs for name in run.artifacts}
    for item in unnamed:
        if item.name not in named:
            run = f"{item.ended[:19].replace('-', '').replace(':', '').replace('T', '-')}-{item.key[:4]}"
            record = RunRecord(
                id=run,
                project=item.project,
                config="",
                started=item.started,
                ended=item.ended,
                result="completed",
                keys={item.stage: item.key},
                stages=[{"stage": item.stage, "cached": False, "seconds": item.seconds}],
            )
            runs.append(_stored_run(record, artifacts, run in pins))
    return StoreContents(artifacts, tuple(sorted(runs, key=lambda run: run.ended, reverse=True)))


def find_run(contents: StoreContents, text: str) -> StoredRun:
    """Return the run whose id begins with `text`; `latest` is the newest run.

    Raises:
        InputError: there is no such run, or more than one.
    """
    if text == "latest" and contents.runs:
        return contents.runs[0]
    found = [run for run in contents.runs if text and run.record.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"run {text!r} is not unique; it begins {', '.join(run.record.id for run in found[:4])}"
        )
    raise InputError(f"there is no run {text!r} in this store; `jora runs` lists them")


def main_measures(store: Store, run: StoredRun) -> dict[str, dict[str, Any]]:
    """Return the main scores of the last model of a run, by task and measure; none without an evaluation.

    The file is read as it is; who uses the numbers further verifies the artifact.
    """
    key = run.record.keys.get("evaluate")
    path = store.path("evaluate", key) / "metrics.json" if key else None
    if path is None or not path.is_file():
        return {}
    try:
        systems = json.loads(path.read_text(encoding="utf-8"))["systems"]
    except (ValueError, KeyError):
        return {}
    scores = next((systems[name] for name in TRAINED_FIRST if name in systems), {})
    return {name: scores[name] for name in MAIN_MEASURES if name in scores}


def with_upstream(names: Iterable[Name], artifacts: Mapping[Name, StoredArtifact]) -> frozenset[Name]:
    """Return those of some artifacts that exist, and all that they were made from."""
    found: set[Name] = set()
    waiting = [name for name in names if name in artifacts]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [one for one in artifacts[name].upstream if one in artifacts]
    return frozenset(found)


def pin(store: Store, run: str) -> None:
    """Keep a run from removal.

    Raises:
        InputError: the store cannot be written.
    """
    store.write_document(PINS, f"{run}.json", json.dumps({"run": run}).encode())


def unpin(store: Store, run: str) -> bool:
    """Remove the pin of a run; return whether there was one."""
    return store.remove_document(PINS, f"{run}.json")


def _pins(store: Store) -> set[str]:
    return {name.removesuffix(".json") for name in store.documents(PINS)}


def _artifacts(store: Store) -> Iterable[StoredArtifact]:
    for stage in store.stages():
        for index in store.indexes(stage):
            for row in index.rows:
                # A broken manifest is damage, which `jora plan` reports.
                if row.regular:
                    yield StoredArtifact(
                        stage=row.stage,
                        key=row.key,
                        project=row.project or "",
                        started=row.started,
                        ended=row.ended,
                        seconds=row.seconds,
                        size=row.size,
                        upstream=(
                            *((name, item["key"]) for name, item in row.upstream.items()),
                            *row.also_read,
                        ),
                    )


def _stored_run(record: RunRecord, artifacts: Mapping[Name, StoredArtifact], pinned: bool) -> StoredRun:
    return StoredRun(
        record=record,
        artifacts=with_upstream(record.keys.items(), artifacts),
        computed=tuple(row["stage"] for row in record.stages if not row["cached"]),
        cached=tuple(row["stage"] for row in record.stages if row["cached"]),
        pinned=pinned,
    )


def _made_during(run: RunRecord, item: StoredArtifact, records: Iterable[RunRecord]) -> bool:
    """Return whether an artifact was made in the time of a run of its project."""
    made = item.ended[:_MILLISECONDS]
    if run.project != item.project or made < run.started[:_MILLISECONDS]:
        return False
    if run.ended:
        return made <= run.ended[:_MILLISECONDS]
    # When a run was killed is not known: before the next one of its project.
    return not any(
        other.project == run.project and run.started < other.started <= item.ended for other in records
    )
