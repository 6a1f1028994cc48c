"""From corpora to records: everything a config asks for, in one call.

The same config over the same files gives the same bytes, wherever the files lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from retrieval.config import ContextConfig
from retrieval.dense import Embedder, load_embedder
from retrieval.records import RANKING_COLUMNS, RECORD_COLUMNS, ParquetSink, canonical_json, write_json
from retrieval.report import Progress, TaskReport
from retrieval.sources import input_digests

FORMAT_VERSION = "1"
RECORDS = "records.parquet"
RANKINGS = "rankings.parquet"
METRICS = "metrics.json"


def build_context(
    config: ContextConfig, output_dir: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Writes `records.parquet`, `rankings.parquet` and, last, `metrics.json`; returns the metrics.

    Each file appears complete or not at all; an error publishes none of them.
    Raises:
        InputError: a source is missing, broken or empty, the embedder is missing, or the folder is not
            writable.
    """
    tell = progress or _silent
    tell("digest inputs", 0, 0)
    inputs = input_digests(config)
    embedder = _embedder(config)
    metadata = {
        "config": canonical_json(config.fingerprint()),
        "inputs": canonical_json(inputs),
        "seed": str(config.seed),
        "format": FORMAT_VERSION,
    }
    reports: dict[str, TaskReport] = {}
    with ExitStack() as stack:
        records = stack.enter_context(ParquetSink(output_dir / RECORDS, RECORD_COLUMNS, metadata))
        rankings = stack.enter_context(ParquetSink(output_dir / RANKINGS, RANKING_COLUMNS, metadata))
        for record, ranking in _examples(config, embedder, reports, tell):
            reports[record["task"]].add_record(record)
            records.append(record)
            if ranking is not None:
                rankings.append(ranking)
    metrics = {
        "seed": config.seed,
        "config": config.fingerprint(),
        "inputs": inputs,
        "records": records.rows,
        "tasks": {task: report.summary() for task, report in reports.items()},
    }
    write_json(output_dir / METRICS, metrics)
    return metrics


def _examples(
    config: ContextConfig, embedder: Embedder | None, reports: dict[str, TaskReport], progress: Progress
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """(record, ranking or None) of all tasks, and a report a task."""
    from retrieval.tasks.qa import qa_records
    from retrieval.tasks.tables import table_records
    from retrieval.tasks.threads import thread_records

    if config.tables:
        reports["tables"] = TaskReport()
        for record in table_records(config, reports["tables"], progress):
            yield record, None
    if config.threads:
        reports["threads"] = TaskReport()
        yield from thread_records(config, embedder, reports["threads"], progress)
    if config.qa:
        reports["qa"] = TaskReport()
        yield from qa_records(config, embedder, reports["qa"], progress)


def _embedder(config: ContextConfig) -> Embedder | None:
    """The embedder if some task has the dense leg, loaded before anything is written.

    Raises:
        InputError: a task has the leg and no usable embedder is configured.
    """
    for field, task in (("threads.legs", config.threads), ("qa.legs", config.qa)):
        if task is not None and "dense" in task.legs:
            return load_embedder(config.embedder, field)
    return None


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that tells nobody."""
