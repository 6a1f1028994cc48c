"""The Prefect flow `data-watch`, which looks for changed sources and emits `raft.data.changed`.

What a look has found is written to the cache of the store. So the next look reads only files whose size or
time differs, and it notices what changed while `jora serve` was off. An automation of the server runs the
pipeline for each event (:mod:`flows.orchestration.serving.data_triggers`).
"""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from flows.orchestration.prefect_server import prepare_environment

prepare_environment()

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.housekeeping.data_watch import Watch, read_known, write_known
from flows.orchestration.flow_runs import begin, deployed_run, refused
from flows.orchestration.notifications import emit_data_changed
from flows.orchestration.serving.run_request import RunRequest
from jora_core.base.errors import InputError
from retrieval.build.inputs import input_files

NAME = "data-watch"
# A look that waits longer ends: a file that grows for hours must not keep the worker from other runs.
MOST_WAITS = 5


@flow(name=NAME, persist_result=False)
def data_watch(*, configuration: str | None = None, changes: list[str] | None = None) -> Any:
    """Look for changed sources, and start a run of the pipeline if there are any.

    Args:
        configuration: Which configuration's sources to look at.
        changes: Items like seed=1. Each changes one value for this look.
    """
    flow_run = deployed_run()
    if flow_run is not None and (skipped := begin(flow_run)):
        return skipped
    try:
        request = RunRequest(configuration, changes, config=None, force=False, dry_run=False)
        message = look(request.settings())
    except InputError as error:
        return refused(error)
    get_run_logger().info(message)
    return Completed(message=message)


def look(config: PipelineConfig) -> str:
    """Look at the sources of a configuration once; emit an event if they have changed, and say so.

    Raises:
        InputError: a source is missing at the first look, or no server takes the event.
    """
    path = known_file(config)
    known = read_known(path)
    settle = config.schedule.settle_seconds
    watch = Watch(lambda: dict(input_files(config.context)), settle, known=known)
    if known is None:
        write_known(path, watch.known)
        return f"first look: {len(watch.known.stamps)} source files noted"
    for wait in range(MOST_WAITS + 1):
        if wait:
            time.sleep(settle)
        found = watch.poll()
        if found:
            if emit_data_changed(config, found) is None:
                # What was found is not written, so the next look finds it again.
                raise InputError(
                    "no Prefect server answers, so the event was not sent; the next look sends it"
                )
            write_known(path, watch.known)
            return f"{found.in_words()}; a run of the pipeline is requested"
        if not watch.waiting:
            write_known(path, watch.known)
            return f"no change in {len(watch.known.stamps)} source files"
    return "source files still change; the next look goes on"


def known_file(config: PipelineConfig) -> Path:
    """Return the file with what the last look has found.

    Its name has a digest of the sources' settings, so that another corpus begins with a first look.
    """
    sources = config.context.model_dump_json()
    digest = hashlib.sha256(sources.encode()).hexdigest()[:12]
    return Store(config.store).cache_dir / "watch" / f"{config.project or 'pipeline'}-{digest}.json"
