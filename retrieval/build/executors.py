"""Build shards in this process, in its threads, or on Dask workers. Every backend gives the same bytes."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import Any

from jora_core.base.errors import InputError
from retrieval.build.shards import Prepared, Shard, build_shard
from retrieval.evaluation.task_report import Progress
from retrieval.search.cores import cores
from retrieval.settings.context import ContextConfig

DASK_MISSING = (
    "context.backend is dask, which is not installed; pip install 'jora-raft[scale]', or set it to threads"
)


def run_shards(config: ContextConfig, work: Path, prepared: Prepared, progress: Progress) -> None:
    """Build every missing shard on the configured backend.

    Args:
        config: the configuration of the build, which names the backend.
        work: the prepared work folder.
        prepared: the description that `prepare` returned.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: Dask is configured and not installed, or no scheduler answers.
    """
    by_task = _TaskProgress(prepared, progress)
    if config.backend == "dask":
        _on_dask(config, work, prepared.shards, by_task)
    else:
        _on_threads(config, work, prepared.shards, by_task)


def worker_count(config: ContextConfig) -> int:
    """Return the number of processes that build shards at the same time."""
    return config.workers or cores()


class _TaskProgress:
    """Count the finished examples of each task. Any thread may report."""

    def __init__(self, prepared: Prepared, progress: Progress) -> None:
        self._progress, self._totals = progress, prepared.examples
        self._done = dict.fromkeys(prepared.examples, 0)
        # Shards of several threads report at once, and `+=` on a dictionary entry is not atomic.
        self._lock = Lock()

    def add(self, task: str, examples: int) -> None:
        with self._lock:
            self._done[task] += examples
            self._progress(f"{task}: records", self._done[task], self._totals[task])


def _on_threads(config: ContextConfig, work: Path, shards: list[Shard], by_task: _TaskProgress) -> None:
    def build(shard: Shard) -> None:
        build_shard(config, work, shard, lambda n: by_task.add(shard.task, n))

    # Building records is mostly Python code under one interpreter lock, so extra threads start only if
    # configured.
    workers = min(config.workers or 1, len(shards))
    if workers <= 1:
        for shard in shards:
            build(shard)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
        _all_or_first_error([pool.submit(build, shard) for shard in shards])


def _all_or_first_error(futures: list[Any]) -> None:
    """Wait for all futures. After the first error, cancel those that have not started."""
    waiting = set(futures)
    try:
        while waiting:
            # As they finish, not in their order: an error in the last shard stops the build without waiting
            # for the others.
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    finally:
        for future in waiting:
            future.cancel()


def _on_dask(config: ContextConfig, work: Path, shards: list[Shard], by_task: _TaskProgress) -> None:
    with dask_client(config) as client:
        from distributed import as_completed  # pyright: ignore[reportMissingImports]

        # `pure=False`: Dask would otherwise take two calls with equal arguments for one, and remember results
        # over a rebuilt work folder. The path is absolute, because workers have a working folder of their
        # own.
        calls = {
            client.submit(build_shard, config, work.resolve(), shard, pure=False): shard for shard in shards
        }
        for future in as_completed(list(calls)):
            # Raises here what the shard raised in its worker.
            future.result()
            shard = calls[future]
            by_task.add(shard.task, shard.high - shard.low)


def local_cluster(config: ContextConfig) -> dict[str, Any]:
    """Return the settings of a Dask `LocalCluster` whose worker processes end with this process."""
    return {
        "n_workers": worker_count(config),
        # Building is Python under one interpreter lock: processes help, threads do not.
        "threads_per_worker": 1,
        "processes": True,
        # The dashboard needs a port, which two builds on one machine cannot share.
        "dashboard_address": None,
        # Off: Dask counts mapped files as memory, and would pause or kill workers that share a large index.
        "memory_limit": 0,
    }


def dask_client(config: ContextConfig) -> Any:
    """Return a Dask client of the configured scheduler.

    Without a scheduler, the client starts worker processes of its own, which end when the client closes.

    Raises:
        InputError: Dask is not installed, or no scheduler answers at the address.
    """
    try:
        from distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(DASK_MISSING) from error
    if config.dask_address is not None:
        try:
            return Client(config.dask_address, timeout="20s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"context.dask_address: no Dask scheduler answers at {config.dask_address}; start one or "
                "leave it empty"
            ) from error
    cluster = LocalCluster(**local_cluster(config))
    return _OwnCluster(Client(cluster), cluster)


class _OwnCluster:
    """A Dask client whose workers end with the `with` block."""

    def __init__(self, client: Any, cluster: Any) -> None:
        self._client, self._cluster = client, cluster

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, *error: object) -> None:
        self._client.close()
        self._cluster.close()
