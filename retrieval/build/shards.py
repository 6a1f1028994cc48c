"""Build records in shards: prepare once, build each shard independently, merge the shards in order.

    prepare   reads the corpora into mapped files, builds the indexes, decides splits, duplicates and caps
    shard     retrieves for a fixed run of a task's records and writes them, in any process
    merge     joins the shards' records in order and adds up their reports

The three steps share one work folder and nothing else, so a shard may be built by this process, a thread,
another process or another machine that sees the folder. Where the records are cut depends on their number
alone and not on the backend, so the result is the same bytes. A build that was killed finds its finished
shards again, as long as configuration, inputs and code are the same.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jora_core.base.atomic_files import remove_temporaries, write_bytes
from jora_core.base.digests import canonical_json, file_digest, file_digests, json_digest, text_digest
from jora_core.base.record_columns import arrow_schema
from retrieval.build.inputs import input_digests, limits_of
from retrieval.build.record_files import ranking_columns, record_columns, row_values
from retrieval.corpus.mapped_items import RowSink
from retrieval.corpus.reading_limits import limited_to
from retrieval.corpus.source_files import expand_path
from retrieval.evaluation import merge_reports
from retrieval.evaluation.task_report import Progress, TaskReport
from retrieval.prompts.token_budget import token_count
from retrieval.search.dense.embedder import Embedder, load_embedder
from retrieval.search.reranker import load_reranker
from retrieval.settings.context import ContextConfig
from retrieval.tasks.task_protocol import load_task

# Of the records file, in its metadata.
FORMAT_VERSION = "1"
PREPARED = "prepared.json"

#: A shard is a task of an orchestrator, which handles tens of tasks well and thousands of tasks badly.
MOST_SHARDS = 64
#: Records between two reports of progress.
PROGRESS_STEP = 500


logger = logging.getLogger("jora.build")


@dataclass(frozen=True)
class Shard:
    """A run of consecutive examples of one task, which one process builds.

    The examples are `low` to `high - 1`. `number` is the place of the shard among the shards of all tasks.
    """

    number: int
    task: str
    low: int
    high: int


@dataclass(frozen=True)
class Prepared:
    """The description of a prepared work folder, which `prepare` returns.

    Attributes:
        key: digest of configuration, inputs and code, under which the work folder is found again.
        inputs: SHA-256 of every input by label.
        examples: number of examples by task, in the order of the records.
        files: SHA-256 of every prepared file by its path in the folder. `prepare` compares them before it
            reuses the folder, because the shards map the files into memory without a check.
        shards: all shards, in the order of the records.
    """

    key: str
    inputs: dict[str, str]
    examples: dict[str, int]
    files: dict[str, str]
    shards: list[Shard]


def cut(examples: dict[str, int], shard_records: int) -> list[Shard]:
    """Cut the examples of each task into shards of `shard_records` examples.

    The shards of a task are longer if it would otherwise have more than `MOST_SHARDS`.
    """
    shards: list[Shard] = []
    for task, n in examples.items():
        # `-(-n // m)` is n / m rounded up.
        size = max(shard_records, -(-n // MOST_SHARDS))
        for low in range(0, n, size):
            shards.append(Shard(len(shards), task, low, min(low + size, n)))
    return shards


def prepare(config: ContextConfig, work: Path, progress: Progress) -> Prepared:
    """Prepare the work folder, or reuse a folder that was prepared with the same configuration and inputs.

    Args:
        config: the configuration of the build.
        work: the work folder.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: a source is missing, broken or empty, the embedder is missing, or the folder is not
            writable; the work folder is then gone.
    """
    progress("digest inputs", 0, 0)
    inputs = input_digests(config)
    progress("digest inputs", len(inputs), len(inputs))
    key = _key(config, inputs)
    found = read_prepared(config, work)
    if found is not None and found.key == key:
        damaged = _damaged(found, work)
        if damaged is None:
            # Left by a process that was killed while it wrote.
            remove_temporaries(work)
            return found
        # The shards go too: nobody knows whether they were built before the damage.
        logger.warning("%s: damaged, so the corpora are prepared again", work / damaged)
    elif found is None and (work / PREPARED).exists():
        logger.warning("%s: damaged, so the corpora are prepared again", work / PREPARED)
    shutil.rmtree(work, ignore_errors=True)
    embedder = _embedder(config)
    if config.reranker:
        load_reranker(config.reranker)  # refused now, not by the first shard
    examples: dict[str, int] = {}
    for task in config.tasks:
        report = TaskReport()
        folder = work / task
        with limited_to(limits_of(config)):
            examples[task] = load_task(task).prepare(config, embedder, folder, report, progress)
        write_bytes(folder / "report.json", merge_reports.dump(report))
    about = {"key": key, "inputs": inputs, "examples": examples, "files": _digests(work)}
    # Last: without this file the folder counts as unprepared, and is filled anew.
    write_bytes(work / PREPARED, json.dumps({**about, "seal": json_digest(about)}).encode())
    return Prepared(**about, shards=cut(examples, config.shard_records))


def read_prepared(config: ContextConfig, work: Path) -> Prepared | None:
    """Return the description of a prepared work folder, or None if `prepare` did not finish there."""
    try:
        about = json.loads((work / PREPARED).read_text(encoding="utf-8"))
        if about.pop("seal") != json_digest(about):
            raise ValueError
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return Prepared(**about, shards=cut(about["examples"], config.shard_records))


def _digests(work: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a prepared folder, by path in it."""
    paths = sorted(path for path in work.rglob("*") if path.is_file())
    names = [path.relative_to(work).as_posix() for path in paths]
    return dict(zip(names, file_digests(paths), strict=True))


def _damaged(found: Prepared, work: Path) -> str | None:
    """Return a prepared file that is missing or was changed; None if all are as they were written."""
    names = list(found.files)
    for name in names:
        if not (work / name).is_file():
            return name
    try:
        digests = file_digests([work / name for name in names])
    except OSError as error:
        return Path(error.filename or work).name
    return next(
        (name for name, digest in zip(names, digests, strict=True) if digest != found.files[name]), None
    )


def build_shard(
    config: ContextConfig, work: Path, shard: Shard, on_progress: Callable[[int], None] | None = None
) -> None:
    """Write a shard's records, rankings and report, unless these files are already complete.

    Args:
        config: the configuration of the build.
        work: the prepared work folder.
        shard: the shard.
        on_progress: called with the number of examples finished since the previous call.
    """
    if shard_done(work, shard):
        if on_progress:
            on_progress(shard.high - shard.low)
        return
    report = TaskReport()
    count = token_count(config) if config.counts_tokens else None
    # The prepared files are mapped, so opening them for each shard is cheap, and nothing has to be pickled.
    opened = load_task(shard.task).open_work(config, work / shard.task)
    paths = shard_paths(work, shard)
    of_record, of_ranking = record_columns(config), ranking_columns(config)
    with (
        RowSink(paths["records"], arrow_schema(of_record)) as records,
        RowSink(paths["rankings"], arrow_schema(of_ranking)) as rankings,
    ):
        for record, ranking in opened.build(shard.low, shard.high, report):
            report.add_record(record, count(record["input"]) if count else None)
            records.append(row_values(record, of_record))
            if ranking is not None:
                rankings.append(row_values(ranking, of_ranking))
            if on_progress and records.rows % PROGRESS_STEP == 0:
                on_progress(PROGRESS_STEP)
    if on_progress:
        # Examples that gave no record are reported here as well, so that the sum reaches the total.
        on_progress(shard.high - shard.low - records.rows // PROGRESS_STEP * PROGRESS_STEP)
    write_bytes(paths["report"], merge_reports.dump(report))
    # After a crash of the machine, a renamed file may still lack its content. The digests detect this.
    digests = {name: file_digest(path) for name, path in paths.items() if name != "done"}
    write_bytes(paths["done"], json.dumps(digests).encode())


def build_numbered(config: ContextConfig, work: Path, number: int) -> int:
    """Build one shard of a prepared work folder, given by its number, and return its number of examples.

    Args:
        config: the configuration of the build.
        work: the prepared work folder.
        number: the shard's place among all shards, from 0.

    Raises:
        RuntimeError: the folder was not prepared.
    """
    shard = require_prepared(config, work).shards[number]
    build_shard(config, work, shard)
    return shard.high - shard.low


def require_prepared(config: ContextConfig, work: Path) -> Prepared:
    """Return the description of a prepared work folder, or raise an error if it has none.

    Raises:
        RuntimeError: `prepare` did not finish in this folder.
    """
    found = read_prepared(config, work)
    if found is None:
        raise RuntimeError(f"{work} holds no prepared build")
    return found


def shard_paths(work: Path, shard: Shard) -> dict[str, Path]:
    """Return the paths of a shard's files.

    The file names contain the range of examples, so shards of different sizes never share a file.
    """
    name = f"{shard.task}-{shard.low:010d}-{shard.high:010d}"
    folder = work / "shards"
    return {
        "records": folder / f"{name}.records.arrow",
        "rankings": folder / f"{name}.rankings.arrow",
        "report": folder / f"{name}.report.json",
        "done": folder / f"{name}.done.json",
    }


def shard_done(work: Path, shard: Shard) -> bool:
    """Return whether the files of a shard are complete and unchanged since they were written."""
    paths = shard_paths(work, shard)
    done = paths.pop("done")
    try:
        digests = json.loads(done.read_text(encoding="utf-8"))
        if digests == {name: file_digest(path) for name, path in paths.items()}:
            return True
    except FileNotFoundError:
        # Without its last file a shard was not finished.
        if not done.exists():
            return False
    except (OSError, ValueError):
        pass
    logger.warning("%s: a file of this shard is damaged, so it is built again", done)
    return False


def task_report(work: Path, task: str, shards: list[Shard]) -> TaskReport:
    """Return the report of one task: the sum of the reports of its preparation and of its shards.

    Args:
        work: the work folder with all shards.
        task: the task's name.
        shards: all shards of the build.
    """
    # In the order of the shards: lists in the report keep the order of the records.
    report = merge_reports.load(TaskReport, (work / task / "report.json").read_bytes())
    for shard in shards:
        if shard.task == task:
            merge_reports.join(
                report, merge_reports.load(TaskReport, shard_paths(work, shard)["report"].read_bytes())
            )
    return report


def _key(config: ContextConfig, inputs: dict[str, str]) -> str:
    """Return the digest of the configuration, the inputs and the code that decide the content of the work
    folder.
    """
    root = Path(__file__).resolve().parents[2]
    # Changed code may prepare or build differently, so it does not continue an older work folder.
    files = [
        path for package in ("retrieval", "jora_core/base") for path in sorted((root / package).rglob("*.py"))
    ]
    code = {path.relative_to(root).as_posix(): file_digest(path) for path in files}
    return text_digest(canonical_json({"config": config.fingerprint(), "inputs": inputs, "code": code}))


def _embedder(config: ContextConfig) -> Embedder | None:
    """Load the embedder, or return None if no task uses the dense leg.

    The model is loaded before anything is written.

    Raises:
        InputError: a task uses the leg and no usable embedder is configured.
    """
    for name in config.tasks:
        # One model serves all tasks: a model takes seconds to load and hundreds of megabytes.
        if load_task(name).needs_embedder(config):
            cache = config.embedding_cache
            folder = Path(expand_path(cache, "embedding_cache")) if cache else None
            return load_embedder(config.embedder, f"{name}.legs", folder)
    return None
