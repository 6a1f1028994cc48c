"""The work of `jora serve`: a Prefect server with its web UI, the deployments, and a worker that runs them.

A server is started only if none answers. This process starts the server and the worker as supervised
processes. They end with this process, also if it is killed, and the runs and their child processes end with
the worker. The worker is Prefect's runner, which needs no work pool on one machine. It starts one run at a
time, so each run has all devices.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flows.children import supervised_process
from flows.configuration.schema import PipelineConfig
from flows.engine.errors import StageFailed
from flows.engine.stage import stages_of
from flows.orchestration.prefect_server import (
    answers,
    known_urls,
    prepare_environment,
    running_server,
    served_url_file,
)
from flows.stages import STAGES
from jora_core.base.errors import InputError

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner

DEFAULT_PORT = 4200
WORKER_GRACE_SECONDS = 60.0  # time for the checkpoints of the runs that are ended
POLL_SECONDS = 0.2
WORKER_NAME = "jora-raft"

READY = """
Prefect UI:      {ui}
Run form:        {ui}/deployments/deployment/{pipeline}/run
Schedule:        {schedule}
From a terminal: export PREFECT_API_URL={api} DO_NOT_TRACK=1
                 prefect deployment run raft-pipeline/raft-pipeline
                 prefect deployment run raft-pipeline/raft-pipeline --param force=true
                 prefect deployment run evaluate/evaluate
Deployments:     {names}
Ctrl-C ends this and whatever it runs; a later run goes on from the checkpoints.
"""


def serve(config: PipelineConfig, port: int | None = None, say: Callable[[str], None] = print) -> None:
    """Serve the pipeline of ``config`` until SIGTERM, SIGHUP or Ctrl-C.

    Use the Prefect server that answers at ``PREFECT_API_URL`` or on the port. Start one on the port if none
    answers.

    Args:
        config: the configuration, which becomes the parameters of the deployments.
        port: port of the server on this machine. None tries the known addresses first, then port 4200.
        say: called with each line for the user.

    Raises:
        InputError: the schedule is not valid.
        StageFailed: the server did not start, or the server or the worker ended by itself.
    """
    prepare_environment()
    _schedules(config)
    # The schedule is checked before anything is started; Prefect would refuse it in the worker only.
    with ExitStack() as stack:
        stack.enter_context(_signals_end_the_block())
        # The server starts first, so it ends last, and the worker can report to it until its own end.
        api_url, server = stack.enter_context(
            _server(port or DEFAULT_PORT, explicit=port is not None, say=say)
        )
        stack.enter_context(_noted(api_url))
        worker = stack.enter_context(_worker(config, api_url))
        # Polled, because one wait for several processes and signals would need an event loop.
        while True:
            time.sleep(POLL_SECONDS)
            for name, process in (("worker", worker), ("server", server)):
                if process is not None and process.ended():
                    raise StageFailed(f"the {name} ended by itself; its last lines stand above")


def deployments(config: PipelineConfig) -> list[RunnerDeployment]:
    """Return the deployments of a configuration: the pipeline with its schedule, then one for each stage.

    Raises:
        InputError: the schedule is not valid.
    """
    prepare_environment()
    from prefect.types.entrypoint import EntrypointType

    from flows.orchestration import pipeline_flow

    # Prefect keeps the parameters in its database, so paths and other types must be plain JSON.
    given = {"config": config.model_dump(mode="json")}
    wanted = {stage.name for stage in stages_of(config, STAGES)}
    flows: list[Flow[..., Any]] = [pipeline_flow.raft_pipeline]
    flows += [flow for name, flow in pipeline_flow.STAGE_FLOWS.items() if name in wanted]
    made = [
        flow.to_deployment(
            name=flow.name,
            parameters=given,
            # Only the whole pipeline has a schedule. An empty list removes an earlier schedule.
            schedules=_schedules(config) if flow is pipeline_flow.raft_pipeline else [],
            description=(flow.fn.__doc__ or "").split("\n\n")[0],
            tags=["jora-raft"],
            # By module, not by file: the worker finds the flows at any place of installation.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for flow in flows
    ]
    # Awaitable only where an event loop runs, says Prefect's type; here none does.
    return cast("list[RunnerDeployment]", made)


def _schedules(config: PipelineConfig) -> list[Any]:
    if config.schedule.cron is None:
        return []
    from prefect.client.schemas.schedules import CronSchedule

    try:
        return [CronSchedule(cron=config.schedule.cron, timezone=config.schedule.timezone)]
    except ValueError as error:
        raise InputError(
            f"schedule: {config.schedule.cron!r} in time zone {config.schedule.timezone!r}: expected "
            "five fields like '0 2 * * *' and an IANA name like Europe/Berlin"
        ) from error


@contextmanager
def _server(
    port: int, explicit: bool, say: Callable[[str], None]
) -> Iterator[tuple[str, supervised_process.Supervised | None]]:
    """Yield the API URL of a server that answers, or of a new server that runs during the block."""
    own = f"http://127.0.0.1:{port}/api"
    # An explicit port is binding. Without one, any server that answers is better than a second server.
    for url in [own] if explicit else [*known_urls(), own]:
        if answers(url):
            say(f"using the Prefect server at {url}")
            yield url, None
            return
    say("starting a Prefect server …")
    command = supervised_process.python_module(
        "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)
    )
    with running_server(command, {"PREFECT_UI_API_URL": own}, own) as server:
        yield own, server


@contextmanager
def _worker(config: PipelineConfig, api_url: str) -> Iterator[supervised_process.Supervised]:
    """Run the worker during the block. The output of the worker and of its runs goes to our stderr."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        # In a file, because a command line is visible to all users and its length is limited.
        file.write(config.model_dump_json())
        file.flush()
        command = supervised_process.python_module("flows.orchestration.serve", file.name)
        worker = supervised_process.start(command, {"PREFECT_API_URL": api_url}, sys.stderr.fileno())
        try:
            yield worker
        finally:
            worker.end(WORKER_GRACE_SECONDS)


@contextmanager
def _noted(api_url: str) -> Iterator[None]:
    """Write the API address to a file for `jora run`: two servers on one SQLite file block each other."""
    path = served_url_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written when the server answers, and removed before its end: a run that reads it finds a running server.
    path.write_text(api_url, encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _signals_end_the_block() -> Iterator[None]:
    """End the block on SIGTERM, SIGHUP or Ctrl-C, with all its cleanup."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Also SIGHUP: a closed terminal must end server and worker.
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(config: PipelineConfig) -> None:
    """Create the deployments, print how to use them, and run due flow runs one at a time."""
    import asyncio

    from prefect.runner import Runner

    # Without the heartbeats a killed run would count as running for ever. Schedules stay as they
    # are when the worker stops: Prefect's default would pause them for good.
    runner = Runner(name=WORKER_NAME, limit=1, heartbeat_seconds=30, pause_on_shutdown=False)
    ids = {item.name: runner.add_deployment(item) for item in deployments(config)}
    api_url = os.environ["PREFECT_API_URL"]
    print(
        READY.format(
            ui=api_url.removesuffix("/api"),
            api=api_url,
            pipeline=ids["raft-pipeline"],
            schedule=_schedule_in_words(config),
            names=", ".join(f"{name}/{name}" for name in ids),
        ),
        flush=True,
    )
    asyncio.run(_until_signal(runner))


async def _until_signal(runner: Runner) -> None:
    """Run due flow runs until SIGTERM, then end the active runs, report to the server and return."""
    import asyncio

    work = asyncio.create_task(runner.start())
    # The runner installs its signal handler at its start. Ours must be installed after it.
    while not (runner.started or work.done()):
        await asyncio.sleep(POLL_SECONDS)
    # Replaces the runner's own handler, which does not wait for its stop and exits before the runs have
    # ended.
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    signalled = asyncio.create_task(ended.wait())
    await asyncio.wait({work, signalled}, return_when=asyncio.FIRST_COMPLETED)
    if signalled.done():
        await runner.astop()
    # This raises the error of a runner that ended by itself.
    await work


def _schedule_in_words(config: PipelineConfig) -> str:
    if config.schedule.cron is None:
        return "none; schedule.cron of the configuration sets one"
    return f"{config.schedule.cron} ({config.schedule.timezone})"


if __name__ == "__main__":
    prepare_environment()
    _work(PipelineConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
