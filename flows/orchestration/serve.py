"""The work of `jora serve`: a Prefect server with its web UI, the reports, and a worker for the runs.

A server is started only if none answers. This process starts the server and the worker as supervised
processes. They end with this process, also if it is killed, and the runs and their child processes end with
the worker. A worker that dies is started again, and its run goes on from the checkpoints.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from flows.children import supervised_process
from flows.configuration.schedule import check_schedule
from flows.configuration.schema import PipelineConfig
from flows.engine.errors import StageFailed
from flows.engine.shared.shared_store import open_store
from flows.orchestration.prefect_server import (
    DEFAULT_PORT,
    PATIENCE,
    answers,
    check_access,
    known_urls,
    local_url,
    prepare_environment,
    require_free,
    running_server,
    served_url_file,
)
from flows.orchestration.server.serve_lock import only_one
from flows.orchestration.serving.deployments import deployments, served
from flows.orchestration.serving.report_server import report_server
from flows.orchestration.serving.worker import WorkerOrder

__all__ = ["deployments", "serve"]

WORKER_GRACE_SECONDS = 60.0  # time for the checkpoints of the runs that are ended
POLL_SECONDS = 0.2
# Pauses before a worker is started again. A worker that has lived for an hour begins with the first one.
RESTART_SECONDS = (1.0, 5.0, 15.0, 60.0)
STEADY_SECONDS = 3600.0
# Address of the report server by folder of the store; the name is that of `live_view.REPORT_SERVERS`.
REPORT_SERVERS = "JORA_REPORT_SERVERS"


def serve(
    configs: PipelineConfig | Sequence[PipelineConfig],
    port: int | None = None,
    say: Callable[[str], None] = partial(print, flush=True),
) -> None:
    """Serve the pipelines of one or several configurations until SIGTERM, SIGHUP or Ctrl-C.

    Use the Prefect server that answers at ``PREFECT_API_URL`` or on the port. Start one on the port if none
    answers.

    Args:
        configs: the configurations, which the run form offers.
        port: port of the server on this machine. None tries the known addresses first, then port 4200.
        say: called with each line for the user.

    Raises:
        InputError: a schedule is not valid, `jora serve` runs already, the port is taken, or the server
            requires a password that is missing or wrong.
        StageFailed: the server did not start, or ended by itself.
    """
    prepare_environment()
    many = [configs] if isinstance(configs, PipelineConfig) else list(configs)
    # Before anything is started; Prefect would refuse it in the worker only.
    for item in served(many):
        check_schedule(item.config.schedule, item.name)
    with ExitStack() as stack:
        stack.enter_context(_signals_end_the_block())
        stack.enter_context(only_one())
        # The server starts first, so it ends last, and the worker can report to it until its own end.
        api_url, server = stack.enter_context(
            _server(port or DEFAULT_PORT, explicit=port is not None, say=say)
        )
        stack.enter_context(_noted(api_url))
        stores = [open_store(config).root for config in many]
        reports = stack.enter_context(report_server(stores, (port or DEFAULT_PORT) + 1, say))
        say("starting the worker …")
        worker = stack.enter_context(_worker(WorkerOrder(many, reports), api_url, say))
        try:
            # Polled, because one wait for several processes and signals would need an event loop.
            while True:
                time.sleep(POLL_SECONDS)
                worker.keep_running()
                if server is not None and server.ended():
                    raise StageFailed("the server ended by itself; its last lines stand above")
        except KeyboardInterrupt:
            say("stopping; a run in training writes a checkpoint first and counts as cancelled …")
            raise
    say("stopped")


@contextmanager
def _server(
    port: int, explicit: bool, say: Callable[[str], None]
) -> Iterator[tuple[str, supervised_process.Supervised | None]]:
    """Yield the API URL of a server that answers, or of a new server that runs during the block."""
    own = local_url(port)
    # An explicit port is binding. Without one, any server that answers is better than a second server.
    for url in [own] if explicit else [*known_urls(), own]:
        if answers(url):
            check_access(url)
            say(f"using the Prefect server at {url}")
            yield url, None
            return
    require_free(port)
    say("starting a Prefect server …")
    command = supervised_process.python_module(
        "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)
    )
    with running_server(command, {"PREFECT_UI_API_URL": own}, own, say) as server:
        # Its own password, if it has one, must be ours too.
        check_access(own)
        yield own, server


@dataclass
class _Worker:
    """The worker process, which is started again when it dies.

    Attributes:
        order: what the worker is told.
        environment: variables to add to its environment.
        say: called with each line for the user.
    """

    order: WorkerOrder
    environment: Mapping[str, str]
    say: Callable[[str], None]
    process: supervised_process.Supervised | None = None
    begun: float = 0.0
    deaths: int = 0
    start_at: float = 0.0
    files: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        """Start the process. The output of the worker and of its runs goes to our stderr."""
        self.files.close()
        # In a file, because a command line is visible to all users and its length is limited.
        folder = Path(self.files.enter_context(tempfile.TemporaryDirectory(prefix="jora-serve-")))
        path = folder / "order.json"
        path.write_text(self.order.to_json(), encoding="utf-8")
        command = supervised_process.python_module("flows.orchestration.serving.worker", str(path))
        self.process = supervised_process.start(command, dict(self.environment), sys.stderr.fileno())
        self.begun = time.monotonic()

    def keep_running(self) -> None:
        """Start the process again if it has died, after a pause that grows with each death."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.start_at:
                self.start()
            return
        if not self.process.ended():
            return
        status = self.process.end(0)  # ends what is left of its process group
        self.process = None
        self.deaths = 1 if now - self.begun > STEADY_SECONDS else self.deaths + 1
        pause = RESTART_SECONDS[min(self.deaths, len(RESTART_SECONDS)) - 1]
        self.order = replace(self.order, restarted=True)
        self.start_at = now + pause
        self.say(f"the worker ended by itself (exit status {status}); starting another in {pause:.0f} s")

    def end(self) -> None:
        """End the process, with time for the checkpoints of its runs."""
        if self.process is not None:
            self.process.end(WORKER_GRACE_SECONDS)
        self.files.close()


@contextmanager
def _worker(order: WorkerOrder, api_url: str, say: Callable[[str], None]) -> Iterator[_Worker]:
    """Run the worker during the block, and start another one when it dies."""
    patience = {name: os.environ.get(name, value) for name, value in PATIENCE.items()}
    environment = {
        "PREFECT_API_URL": api_url,
        REPORT_SERVERS: json.dumps(dict(order.reports)),
        **patience,
    }
    worker = _Worker(order, environment, say)
    try:
        worker.start()
        yield worker
    finally:
        worker.end()


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
