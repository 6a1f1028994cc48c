"""Build the records of a whole configuration in one call.

The same configuration and the same input files give the same bytes. Neither the location of the files nor the
backend that builds the shards changes them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_core.base.atomic_files import write_json
from jora_core.base.digests import canonical_json
from jora_core.base.errors import InputError, write_error
from jora_core.base.row_digests import RowDigest, select_rows
from retrieval.build.executors import run_shards
from retrieval.build.record_files import ranking_columns, record_columns
from retrieval.build.shards import (
    FORMAT_VERSION,
    Prepared,
    Shard,
    prepare,
    require_prepared,
    shard_done,
    shard_paths,
    task_report,
)
from retrieval.corpus.file_sinks import ParquetSink
from retrieval.corpus.mapped_items import map_batches
from retrieval.evaluation.task_report import Progress
from retrieval.evaluation.threads.link_rows import LINK_COLUMNS
from retrieval.settings.context import ContextConfig
from retrieval.tasks.task_protocol import LINKS as PREPARED_LINKS

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS = "records.parquet"
RANKINGS = "rankings.parquet"
LINKS = "links.parquet"
METRICS = "metrics.json"
# Hidden, because it is no result.
WORK = ".build"
SPLITS = ("train", "test")


def build_record_files(
    config: ContextConfig, output_dir: Path, progress: Progress | None = None, work_dir: Path | None = None
) -> dict[str, Any]:
    """Build records, rankings and links (Parquet) and `metrics.json`, and return the metrics.

    The metrics are written last. Each file appears complete or not at all. An error publishes none of them. A
    build that was killed continues from its work folder when the function is called again. Wrong input leaves
    no work folder.

    Args:
        config: the configuration of the build.
        output_dir: folder that the files are written to.
        progress: receives (step, done, total) while the work advances.
        work_dir: holds unfinished work until the build ends; by default a folder below `output_dir`.

    Raises:
        InputError: a source is missing, broken or empty, the embedder is missing, or the folder is not
            writable.
    """
    tell = progress or _silent
    work = work_dir or output_dir / WORK
    # The parent is locked, because the work folder itself is deleted and made anew.
    with _alone(work.parent):
        try:
            prepared = prepare(config, work, tell)
            run_shards(config, work, prepared, tell)
            metrics = merge(config, work, prepared, output_dir, tell)
        except InputError:
            # The user corrects wrong input, so the next build has another key and cannot reuse the work
            # folder. After any other error the folder is kept, because its finished shards are valid.
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
    return metrics


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder against other builds. The operating system frees the lock when the process ends.

    Raises:
        InputError: another build has locked the folder, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder can be locked like a file, so no lock file stays behind.
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        try:
            # Without waiting: two builds into one folder are a mistake of the user.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another build is writing there; wait for its end or choose another folder"
            ) from None
        yield
    finally:
        os.close(handle)


def merge(
    config: ContextConfig, work: Path, prepared: Prepared, output_dir: Path, progress: Progress
) -> dict[str, Any]:
    """Join the finished shards, in order, into the files of the build, and return the metrics.

    Args:
        config: the configuration of the build.
        work: the work folder with all shards.
        prepared: the description that `prepare` returned.
        output_dir: folder that the files are written to.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: a file cannot be written.
    """
    progress("merge shards", 0, len(prepared.shards))
    # The metadata of all files. It has no time and no path, so equal builds give equal bytes.
    metadata = {
        "config": canonical_json(config.fingerprint()),
        "inputs": canonical_json(prepared.inputs),
        "seed": str(config.seed),
        "format": FORMAT_VERSION,
    }
    with ExitStack() as stack:
        # Left in reverse order, so `records.parquet` is published first, and all before the metrics.
        links = stack.enter_context(ParquetSink(output_dir / LINKS, LINK_COLUMNS, metadata))
        rankings = stack.enter_context(ParquetSink(output_dir / RANKINGS, ranking_columns(config), metadata))
        records = stack.enter_context(ParquetSink(output_dir / RECORDS, record_columns(config), metadata))
        digests = {name: _TaskDigests() for name in ("records", "rankings", "links")}
        links.append_batches(digests["links"].noting(_prepared_links(work, prepared.examples)))
        rankings.append_batches(digests["rankings"].noting(_batches(work, prepared.shards, "rankings")))
        records.append_batches(digests["records"].noting(_batches(work, prepared.shards, "records")))
        # From here on until they are written again, the missing metrics mark the folder as incomplete.
        (output_dir / METRICS).unlink(missing_ok=True)
    metrics = {
        "seed": config.seed,
        "config": config.fingerprint(),
        "inputs": prepared.inputs,
        "records": records.rows,
        "tasks": {task: task_report(work, task, prepared.shards).summary() for task in prepared.examples},
        # Of the rows of a task and split. Who reads these rows alone need not look at the rest of the file.
        "digests": {name: found.by_task(prepared.examples) for name, found in digests.items()},
    }
    # Written last: a folder with this file holds all files of one build.
    write_json(output_dir / METRICS, metrics)
    progress("merge shards", len(prepared.shards), len(prepared.shards))
    return metrics


def merge_prepared(config: ContextConfig, work: Path, output_dir: Path) -> dict[str, Any]:
    """Merge the shards that other processes built in a work folder, and remove the folder.

    Args:
        config: the configuration of the build.
        work: the work folder.
        output_dir: folder that the files are written to.

    Raises:
        InputError: a file cannot be written.
        RuntimeError: a shard is missing or damaged.
    """
    prepared = require_prepared(config, work)
    for shard in prepared.shards:
        if not shard_done(work, shard):
            raise RuntimeError(f"{work}: shard {shard.number} was not built to its end")
    metrics = merge(config, work, prepared, output_dir, _silent)
    shutil.rmtree(work, ignore_errors=True)
    return metrics


class _TaskDigests:
    """Digests of the rows of each task and split, noted while the rows are written."""

    def __init__(self) -> None:
        self._found: defaultdict[tuple[str, str], RowDigest] = defaultdict(RowDigest)

    def noting(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the batches unchanged."""
        for batch in batches:
            for task in batch.column("task").unique().to_pylist():
                for split in SPLITS:
                    self._found[task, split].add(select_rows(batch, task=(task,), split=(split,)))
            yield batch

    def by_task(self, tasks: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return the digests by task and split, also of a task without rows."""
        return {task: {split: self._found[task, split].hexdigest() for split in SPLITS} for task in tasks}


def _prepared_links(work: Path, tasks: Iterable[str]) -> Iterator[pa.RecordBatch]:
    for task in tasks:
        path = work / task / PREPARED_LINKS
        if path.is_file():
            yield from map_batches(path)


def _batches(work: Path, shards: list[Shard], kind: str) -> Iterator[pa.RecordBatch]:
    for shard in shards:
        yield from map_batches(shard_paths(work, shard)[kind])


def _silent(stage: str, done: int, total: int) -> None:
    """Ignore progress."""
