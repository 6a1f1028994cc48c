"""Which raw rows taught a model: the records of each training, and the file's row that each was made from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.lineage.chain import Chain, Link
from jora_core.base.record_columns import TRAINED_RECORDS

RECORDS = ("build-context", "records.parquet")
_COLUMNS = ["id", "task", "split", "source", "source_row", "context_id"]


@dataclass(frozen=True)
class TaughtRow:
    """A raw row that a training has learned from.

    Attributes:
        phase: stage of the training.
        task: task of the record.
        source: the corpus file, as the record names it.
        source_row: number of the row in the file.
        context_id: the table, thread or document of the record.
        record: id of the record.
        times: how often the training has seen the record.
    """

    phase: str
    task: str
    source: str
    source_row: int
    context_id: str
    record: str
    times: int


@dataclass(frozen=True)
class TaughtSource:
    """What one corpus file gave to one training.

    Attributes:
        phase: stage of the training.
        source: the corpus file.
        task: task of its records.
        rows: number of different rows.
        records: number of records made from them.
        times: how often the training has seen these records, all together.
        offered: number of training records of this file and task.
    """

    phase: str
    source: str
    task: str
    rows: int
    records: int
    times: int
    offered: int


@dataclass(frozen=True)
class Taught:
    """The rows behind a model, by corpus file, and what is not known about them."""

    sources: tuple[TaughtSource, ...]
    notes: tuple[str, ...]


#: What `counted_rows` and `listed_rows` return, for a terminal and a page.
COUNTED = ("Training", "Corpus file", "Task", "Rows", "Records", "Seen", "Offered")
LISTED = ("Training", "Corpus file", "Row", "Task", "Record", "Seen")


def counted_rows(sources: Iterable[TaughtSource]) -> list[tuple[str, ...]]:
    """Return what each corpus file gave to each training, as rows of a table with the columns `COUNTED`."""
    return [
        (
            one.phase,
            one.source,
            one.task,
            *(f"{n:,}" for n in (one.rows, one.records, one.times, one.offered)),
        )
        for one in sources
    ]


def listed_rows(rows: Iterable[TaughtRow]) -> list[tuple[str, ...]]:
    """Return raw rows, as rows of a table with the columns `LISTED`."""
    return [
        # Numbers without separators: the command's lines are for other programs too.
        (row.phase, row.source, str(row.source_row), row.task, row.record, str(row.times))
        for row in rows
    ]


def trainings(chain: Chain) -> list[Link]:
    """Return the trainings of a chain, in the order in which they were done."""
    return [link for link in chain.links if "phases" in link.manifest["config"] and _is_training(link)]


def _is_training(link: Link) -> bool:
    return link.manifest["stage"].startswith("finetune-")


def taught_rows(chain: Chain) -> Iterator[TaughtRow]:
    """Yield the rows that each training of a chain has learned from, by training, file and row."""
    records = _records(chain)
    for link in trainings(chain):
        rows = [
            TaughtRow(
                phase=link.manifest["stage"],
                task=found["task"],
                source=found["source"],
                source_row=found["source_row"],
                context_id=found["context_id"],
                record=record,
                times=times,
            )
            for record, times in (_counts(link) or {}).items()
            if (found := records.get(record)) is not None
        ]
        yield from sorted(rows, key=lambda row: (row.task, row.source, row.source_row, row.record))


def taught(chain: Chain) -> Taught:
    """Return what each corpus file gave to each training of a chain."""
    records = _records(chain)
    found: list[TaughtSource] = []
    notes: list[str] = []
    by_phase: dict[str, list[TaughtRow]] = defaultdict(list)
    for row in taught_rows(chain) if records else ():
        by_phase[row.phase].append(row)
    for link in trainings(chain):
        stage = link.manifest["stage"]
        notes += _notes(link, records)
        (phase,) = link.manifest["config"]["phases"].values()
        offered = Counter(
            (row["source"], row["task"])
            for row in records.values()
            if row["split"] == "train" and row["task"] in phase["tasks"]
        )
        rows: dict[tuple[str, str], list[TaughtRow]] = defaultdict(list)
        for row in by_phase[stage]:
            rows[row.source, row.task].append(row)
        found += [
            TaughtSource(
                phase=stage,
                source=source,
                task=task,
                rows=len({row.source_row for row in rows[source, task]}),
                records=len(rows[source, task]),
                times=sum(row.times for row in rows[source, task]),
                offered=count,
            )
            for (source, task), count in sorted(offered.items())
        ]
    return Taught(tuple(found), tuple(notes))


def _notes(link: Link, records: Mapping[str, Any]) -> list[str]:
    """Return what the rows of a training do not tell."""
    stage = link.manifest["stage"]
    counts = _counts(link)
    if counts is None:
        return [f"{stage}: {TRAINED_RECORDS} is not here, so its rows are not known; train it again"]
    if not records:
        return [f"{stage}: the records of build-context are not here, so its rows are not known"]
    found = []
    if mixed := sum(record not in records for record in counts):
        found.append(f"{stage}: and {mixed} general instructions (alpaca_mix), which are no rows of a corpus")
    for name in ("init_adapter", "continue_from"):
        if any(label.startswith(f"{name}/") for label in link.manifest["inputs"]):
            found.append(f"{stage}: it began with the weights of another training ({name})")
    return found


def _counts(link: Link) -> dict[str, int] | None:
    """Return how often a training has seen each record; None if that is not recorded, or damaged."""
    path = _whole_file(link, TRAINED_RECORDS)
    if path is None:
        return None
    return {row["id"]: row["times"] for row in _read(path, ["id", "times"])}


def _records(chain: Chain) -> dict[str, dict[str, Any]]:
    """Return the records by id; none if their file is not here."""
    stage, name = RECORDS
    link = next((link for link in chain.links if link.manifest["stage"] == stage), None)
    path = None if link is None else _whole_file(link, name)
    return {} if path is None else {row["id"]: row for row in _read(path, _COLUMNS)}


def _whole_file(link: Link, name: str) -> Path | None:
    path = None if link.folder is None else link.folder / name
    return path if path is not None and path.is_file() else None


def _read(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns).to_pylist()
    # A damaged file is among the findings of the chain.
    except (pa.ArrowException, OSError):
        return []
