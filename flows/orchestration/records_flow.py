"""`build-records`: the build of `build-context` as a Prefect flow: prepare, shards as mapped tasks, merge.

The shards run on threads by default, each thread driving a child process, or on Dask (`context.backend`).
What they build is what `jora context` builds without Prefect, byte for byte, since both run the shards of
:mod:`retrieval.build.shards`. Tasks hand over shard numbers: the records stay in the work folder, which Dask
workers on other machines must see as well. A shard that fails is tried again alone; a run that is killed
finds its finished shards when it is started anew.
"""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flows.orchestration.prefect_server import prepare_environment

prepare_environment()

from prefect import flow, task, unmapped
from prefect.logging import get_run_logger
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.children.build_records import BuildContextSpec, Step, peak_memory_bytes
from flows.children.run_child import run_child, stopping
from flows.configuration.schema import RetryConfig
from jora_core.base.errors import InputError
from retrieval.settings.context import ContextConfig


def build_records(
    context: ContextConfig, records_dir: Path, work_dir: Path, retries: RetryConfig
) -> dict[str, Any]:
    """Run the flow with the configured task runner; return what the merge says: records, tasks, peak memory.

    Raises:
        InputError: wrong input, or Dask is asked for and not installed.
    """
    run = build_records_flow.with_options(task_runner=_task_runner(context))
    return run(context=context, records_dir=records_dir, work_dir=work_dir, retries=retries)


@flow(name="build-records", persist_result=False, validate_parameters=False)
def build_records_flow(
    context: ContextConfig, records_dir: Path, work_dir: Path, retries: RetryConfig
) -> dict[str, Any]:
    """Read and index the corpora, build the records shard by shard, join them."""
    order = {"context": context, "work_dir": work_dir / "build", "records_dir": records_dir}
    prepared = prepare_records(order, work_dir)
    shards = prepared["shards"]
    peaks = [prepared["peak_memory_bytes"]]
    call = build_shard.with_options(
        retries=retries.max_retries,
        retry_delay_seconds=retries.delay_seconds,
        retry_jitter_factor=retries.jitter,
        task_run_name="shard {number}: {span}",
    )
    futures = call.map(list(range(len(shards))), shards, unmapped(order), unmapped(work_dir))
    say, begun = get_run_logger().info, time.monotonic()
    # In order: later shards go on meanwhile, and what they finish is found by the next try if one failed.
    for done, future in enumerate(futures, start=1):
        peaks.append(future.result())
        rate = done / (time.monotonic() - begun)
        say(f"records: {done} of {len(shards)} shards, {(len(shards) - done) / rate:.0f} s left")
    merged = merge_records(order, work_dir)
    return {**merged, "peak_memory_bytes": max(*peaks, merged["peak_memory_bytes"])}


def _worth_retrying(_: Any, __: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return not (stopping() or isinstance(error, InputError))


@task(name="prepare", persist_result=False)
def prepare_records(order: dict[str, Any], work_dir: Path) -> dict[str, Any]:
    """Read the corpora into mapped files and index them; return the shards' spans."""
    return _child("prepare", order, work_dir / "orders" / "prepare")


@task(name="shard", persist_result=False, retry_condition_fn=_worth_retrying)
def build_shard(number: int, span: str, order: dict[str, Any], work_dir: Path) -> int:
    """Build one shard's records; return the peak memory of its process in bytes."""
    context: ContextConfig = order["context"]
    if context.backend == "dask":
        # This is a worker process already, and stays warm from shard to shard.
        from retrieval.build.shards import build_numbered

        build_numbered(context, order["work_dir"], number)
        return peak_memory_bytes()
    found = _child("shard", order, work_dir / "orders" / f"shard-{number}", number)
    return found["peak_memory_bytes"]


@task(name="merge", persist_result=False)
def merge_records(order: dict[str, Any], work_dir: Path) -> dict[str, Any]:
    """Join the shards in order; return counts and quality by task."""
    return _child("merge", order, work_dir / "orders" / "merge")


def _child(step: Step, order: dict[str, Any], folder: Path, shard: int = 0) -> dict[str, Any]:
    spec = BuildContextSpec(step=step, shard=shard, output_dir=folder, **order)
    return run_child("flows.children.build_records", spec, folder)


def _task_runner(context: ContextConfig) -> TaskRunner[Any]:
    """Threads, or Dask workers of the configured address or of their own."""
    from retrieval.build.executors import DASK_MISSING, local_cluster, worker_count

    if context.backend == "threads":
        return ThreadPoolTaskRunner(max_workers=worker_count(context))
    try:
        from prefect_dask.task_runners import DaskTaskRunner  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(DASK_MISSING) from error
    if context.dask_address is not None:
        return DaskTaskRunner(address=context.dask_address)
    return DaskTaskRunner(cluster_kwargs=local_cluster(context))
