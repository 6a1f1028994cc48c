"""The worker of `jora serve`, a process of its own: it registers the deployments and runs due flow runs.

The worker is Prefect's runner, which needs no work pool on one machine. It runs one flow run at a time, so
each run has all devices. ``python -m flows.orchestration.serving.worker FILE`` reads the configurations from
a file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import UUID

from flows.configuration.schema import ConfigSource, PipelineConfig
from flows.orchestration.prefect_server import LINE_SECONDS, prepare_environment
from flows.orchestration.serving.catch_up_runs import skip_superseded
from flows.orchestration.serving.data_triggers import run_on_changed_data
from flows.orchestration.serving.deployments import PIPELINE, deployments, served
from flows.orchestration.serving.lost_runs import resume_lost_runs, watch_for_lost_runs

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner

NAME = "jora-raft"
POLL_SECONDS = 0.2
SWEEP_SECONDS = 5.0
HEARTBEAT_SECONDS = 30

READY = """
Prefect UI:      {ui}
Run form:        {ui}/v2/deployments/deployment/{pipeline}/run
Reports:         {reports}
Schedule:        {schedule}
From a terminal: export PREFECT_API_URL={api} DO_NOT_TRACK=1
                 prefect deployment run raft-pipeline/raft-pipeline
                 prefect deployment run raft-pipeline/raft-pipeline --param force=true
                 prefect deployment run evaluate/evaluate
Deployments:     {names}
Ctrl-C ends this and whatever it runs. After the next start, open a cancelled run and choose ⋮, then
"Copy to new run": it goes on from the checkpoint.
"""


@dataclass(frozen=True)
class WorkerOrder:
    """What `jora serve` tells its worker.

    Attributes:
        configs: the configurations to serve, with the files they come from.
        reports: address of the reports by folder of the store.
        restarted: whether an earlier worker of the same `jora serve` has died.
    """

    configs: Sequence[PipelineConfig]
    reports: Mapping[str, str]
    restarted: bool = False

    def to_json(self) -> str:
        """Return the order as JSON."""
        configs = [
            {
                "config": config.model_dump(mode="json"),
                "source": asdict(config.source) if config.source else None,
            }
            for config in self.configs
        ]
        return json.dumps({"configs": configs, "reports": dict(self.reports), "restarted": self.restarted})

    @classmethod
    def from_json(cls, text: str) -> WorkerOrder:
        """Read an order that `to_json` has made."""
        raw = json.loads(text)
        configs = []
        for item in raw["configs"]:
            source = item["source"]
            if source:
                source = ConfigSource(source["argument"], source["file"], tuple(source["overrides"]))
            configs.append(PipelineConfig.model_validate(item["config"]).loaded_from(source))
        return cls(configs, raw["reports"], raw["restarted"])


def work(order: WorkerOrder) -> None:
    """Register the deployments, print how to use them, and run due flow runs until SIGTERM."""
    from prefect.client.orchestration import get_client
    from prefect.runner import Runner

    _say_once()
    # Without the heartbeats a killed run would count as running for ever. Schedules stay as they
    # are when the worker stops: Prefect's default would pause them for good.
    runner = Runner(name=NAME, limit=1, heartbeat_seconds=HEARTBEAT_SECONDS, pause_on_shutdown=False)
    ids = _register(runner, deployments(order.configs))
    with get_client(sync_client=True) as client:
        watch_for_lost_runs(client, HEARTBEAT_SECONDS)
        run_on_changed_data(client, served(order.configs), ids[f"{PIPELINE}/{PIPELINE}"])
        resume_lost_runs(client, list(ids.values()), _say, just_died=order.restarted)
        skip_superseded(client, list(ids.values()), _say)
    if not order.restarted:
        _print_ready(order, ids)
    asyncio.run(_until_signal(runner, list(ids.values())))


def _register(runner: Runner, wanted: Sequence[RunnerDeployment]) -> dict[str, UUID]:
    """Register deployments and return their ids; on a busy machine, a line now and then says how many."""
    ids: dict[str, UUID] = {}
    said = time.monotonic()
    for number, item in enumerate(wanted):
        if time.monotonic() - said > LINE_SECONDS:
            _say(f"registering deployments: {number} of {len(wanted)}")
            said = time.monotonic()
        ids[f"{item.flow_name}/{item.name}"] = cast("UUID", runner.add_deployment(item))
    return ids


async def _until_signal(runner: Runner, deployment_ids: Sequence[UUID]) -> None:
    """Run due flow runs until SIGTERM, then end the active runs, report to the server and return."""
    work = asyncio.create_task(runner.start())
    # The runner installs its signal handler at its start. Ours must be installed after it.
    while not (runner.started or work.done()):
        await asyncio.sleep(POLL_SECONDS)
    # Replaces the runner's own handler, which does not wait for its stop and exits before the runs have
    # ended.
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    signalled = asyncio.create_task(ended.wait())
    sweeping = asyncio.create_task(_sweep(deployment_ids))
    await asyncio.wait({work, signalled}, return_when=asyncio.FIRST_COMPLETED)
    sweeping.cancel()
    if signalled.done():
        await runner.astop()
    # This raises the error of a runner that ended by itself.
    await work


async def _sweep(deployment_ids: Sequence[UUID]) -> None:
    """Skip superseded runs again and again; a server that is away for a while is tried later."""

    def once() -> None:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            skip_superseded(client, deployment_ids, _say)

    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await asyncio.to_thread(once)
        except Exception as error:
            logging.getLogger("prefect.runner").debug("missed runs are looked for later: %s", error)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_once() -> None:
    """Let Prefect's runner say only once that due runs wait for the run in progress."""
    from prefect.logging.configuration import setup_logging

    setup_logging()  # before the runner does, which would put new handlers in place
    last = [""]

    def passes(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        repeated = "(at capacity)" in text and text == last[0]
        if "(at capacity)" in text or "Completed submission" in text:
            last[0] = text
        return not repeated

    logger = logging.getLogger("prefect.runner")
    logger.addFilter(passes)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("prefect.runner"):
            logging.getLogger(name).addFilter(passes)


def _print_ready(order: WorkerOrder, ids: Mapping[str, UUID]) -> None:
    api_url = os.environ["PREFECT_API_URL"]
    print(
        READY.format(
            ui=api_url.removesuffix("/api"),
            api=api_url,
            pipeline=ids[f"{PIPELINE}/{PIPELINE}"],
            reports=", ".join(f"{address}/report.html" for address in order.reports.values()) or "none",
            schedule=schedules_in_words(order.configs),
            names=", ".join(ids),
        ),
        flush=True,
    )


def schedules_in_words(configs: Sequence[PipelineConfig]) -> str:
    """Return the schedules of configurations as one line."""
    lines = [
        f"{config.schedule.cron} ({config.schedule.timezone})"
        + (
            f" for {config.source.argument or config.source.file}"
            if len(configs) > 1 and config.source
            else ""
        )
        for config in configs
        if config.schedule.cron is not None
    ]
    return ", ".join(lines) or "none; schedule.cron of the configuration sets one"


if __name__ == "__main__":
    prepare_environment()
    work(WorkerOrder.from_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
