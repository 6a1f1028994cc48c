"""The Prefect flow `build-records`, which does the work of the stage `build-context`.

Its tasks prepare the corpora, build the shards and merge them. The shard tasks run on threads, each with a
child process, or on Dask (`context.backend`). They write the same bytes as `jora context` without Prefect,
because both use :mod:`retrieval.build.shards`. Tasks pass shard numbers only. The records stay in the work
folder, which Dask workers on other machines must see too. A failed shard is retried alone, and a run after a
kill finds the finished shards.
"""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.orchestration.prefect_server import prepare_environment

prepare_environment()

from prefect import flow, task, unmapped
from prefect.logging import get_run_logger
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.children.build_records_spec import BuildContextSpec, Step
from flows.children.run_child import run_child, stopping
from flows.configuration.schema import RetryConfig
from jora_core.base.errors import InputError
from jora_core.base.spec_command import peak_process_bytes
from retrieval.settings.context import ContextConfig


@dataclass(frozen=True)
class RecordsBuild:
    """The settings and folders of one build of records.

    Attributes:
        context: settings of corpora, retrieval and records.
        records_dir: folder of the records.
        work_dir: folder of the files that the steps of the build share.
    """

    context: ContextConfig
    records_dir: Path
    work_dir: Path

    @property
    def steps_dir(self) -> Path:
        """Folder of prepared corpora and finished shards, which a later run uses again."""
        return self.work_dir / "build"


def build_records(
    context: ContextConfig, records_dir: Path, work_dir: Path, retries: RetryConfig
) -> dict[str, Any]:
    """Build the records in the flow `build-records`, with the configured task runner.

    Args:
        context: settings of corpora, retrieval and records.
        records_dir: folder for records, rankings and metrics.
        work_dir: folder of the files that the steps share, with the finished shards of a killed run.
        retries: retries of one shard.

    Returns:
        Number of records, metrics of the tasks, and peak memory in bytes.

    Raises:
        InputError: the input is wrong, or Dask is configured but not installed.
    """
    # A task runner belongs to a flow and cannot be chosen inside of it.
    run = build_records_flow.with_options(task_runner=_task_runner(context))
    return run(context=context, records_dir=records_dir, work_dir=work_dir, retries=retries)


@flow(name="build-records", persist_result=False, validate_parameters=False)
def build_records_flow(
    context: ContextConfig, records_dir: Path, work_dir: Path, retries: RetryConfig
) -> dict[str, Any]:
    """Read and index the corpora, build the records shard by shard, and merge the shards.

    Args:
        context: settings of corpora, retrieval and records.
        records_dir: folder for records, rankings and metrics.
        work_dir: folder of the files that the steps share.
        retries: retries of one shard.

    Returns:
        See `build_records`.
    """
    build = RecordsBuild(context=context, records_dir=records_dir, work_dir=work_dir)
    prepared = prepare_records(build)
    shards = prepared["shards"]
    peaks = [prepared["peak_memory_bytes"]]
    call = build_shard.with_options(
        retries=retries.max_retries,
        retry_delay_seconds=retries.delay_seconds,
        retry_jitter_factor=retries.jitter,
        task_run_name="shard {number}: {span}",
    )
    futures = call.map(list(range(len(shards))), shards, unmapped(build))
    say, begun = get_run_logger().info, time.monotonic()
    # The results are awaited in the order of the shards. After a failure the later shards continue, and the
    # next run finds those that have finished.
    for done, future in enumerate(futures, start=1):
        peaks.append(future.result())
        rate = done / (time.monotonic() - begun)
        say(f"records: {done} of {len(shards)} shards, {(len(shards) - done) / rate:.0f} s left")
    merged = merge_records(build)
    # The stage's peak is that of its largest process; shards that run side by side are not added up.
    return {**merged, "peak_memory_bytes": max(*peaks, merged["peak_memory_bytes"])}


def _worth_retrying(_: Any, __: Any, state: Any) -> bool:
    """Whether a retry of a shard may succeed: not after a wrong input, and not at the end of the run."""
    error = state.result(raise_on_failure=False)
    return not (stopping() or isinstance(error, InputError))


@task(name="prepare", persist_result=False)
def prepare_records(build: RecordsBuild) -> dict[str, Any]:
    """Read the corpora into memory-mapped files and index them; return the spans of the shards."""
    return _child("prepare", build)


@task(name="shard", persist_result=False, retry_condition_fn=_worth_retrying)
def build_shard(number: int, span: str, build: RecordsBuild) -> int:
    """Build one shard's records.

    Args:
        number: number of the shard, from 0.
        span: task and range of the shard, for the name of the task run.
        build: settings and folders of the build.

    Returns:
        The peak memory of the shard's process in bytes.
    """
    if build.context.backend == "dask":
        # A Dask worker is a process of its own already, and its libraries stay loaded from shard to shard.
        from retrieval.build.shards import build_numbered

        build_numbered(build.context, build.steps_dir, number)
        return peak_process_bytes()
    return _child("shard", build, number)["peak_memory_bytes"]


@task(name="merge", persist_result=False)
def merge_records(build: RecordsBuild) -> dict[str, Any]:
    """Merge the shards in their order; return the counts and the retrieval quality by task."""
    return _child("merge", build)


def _child(step: Step, build: RecordsBuild, shard: int = 0) -> dict[str, Any]:
    # A folder for each shard: children run side by side, and each writes `result.json`.
    folder = build.work_dir / "specs" / (f"shard-{shard}" if step == "shard" else step)
    spec = BuildContextSpec(
        step=step,
        shard=shard,
        output_dir=folder,
        context=build.context,
        work_dir=build.steps_dir,
        records_dir=build.records_dir,
    )
    return run_child("flows.children.build_records", spec, folder)


def _task_runner(context: ContextConfig) -> TaskRunner[Any]:
    """Return the task runner for threads, for the configured Dask cluster, or for a new local one."""
    # Imported here, because it loads numpy, which neither `jora plan` nor the import of this module needs.
    from retrieval.build.executors import DASK_MISSING, local_cluster, worker_count

    if context.backend == "threads":
        # Threads suffice: each one only waits for a child process and almost never holds the interpreter's
        # lock.
        return ThreadPoolTaskRunner(max_workers=worker_count(context))
    try:
        from prefect_dask.task_runners import DaskTaskRunner  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(DASK_MISSING) from error
    if context.dask_address is not None:
        return DaskTaskRunner(address=context.dask_address)
    return DaskTaskRunner(cluster_kwargs=local_cluster(context))
