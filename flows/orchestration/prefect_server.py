"""Which Prefect server a run talks to: one that answers, else a temporary one that ends with this process.

Prefect's own temporary server is a plain child and outlives a killed parent; ours runs under
:mod:`flows.children.supervisor`. Nothing here imports Prefect at import: the environment below must be set
before.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.children import supervised_process
from flows.engine.errors import StageFailed, one_line_os_errors

# Read by Prefect when it is imported; a variable that is set keeps the user's value. What each one stops:
# - DO_NOT_TRACK: the client library's usage events (api2.amplitude.com).
# - PREFECT_SERVER_ANALYTICS_ENABLED: the server's heartbeat (sens-o-matic.prefect.io), the UI's usage events.
# - PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY and PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS: exporters that
#   are idle without an endpoint; off, so that nobody has to know.
# - HF_HUB_DISABLE_TELEMETRY: usage events of the Hugging Face libraries.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# A fresh database takes 8 s of migrations, minutes on a machine that is busy training; Prefect gives up
# after 20 s.
STARTUP_SECONDS = 300
PROBE_SECONDS = 3.0
STOP_SECONDS = 10.0


def prepare_environment() -> None:
    """Switch off Prefect's outbound calls, give its server time to start; call before importing Prefect."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(STARTUP_SECONDS))


def prefect_home() -> Path:
    """Return the folder of Prefect's database and profiles: ``PREFECT_HOME``, by default ``~/.prefect``."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()


def served_url_file() -> Path:
    """Return the file in which a running `jora serve` notes its API address for the runs beside it."""
    return prefect_home() / "jora-serve.url"


def answers(api_url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a Prefect API answers at ``api_url`` (one that asks for a password does)."""
    # A company's HTTP proxy knows nothing of this machine's ports and would answer with an error of its
    # own.
    local = urlsplit(api_url).hostname in ("127.0.0.1", "localhost", "::1")
    handlers = [urllib.request.ProxyHandler({})] if local else []
    try:
        with urllib.request.build_opener(*handlers).open(f"{api_url.rstrip('/')}/health", timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        # 401 and 403 come from a server that wants credentials: it is there. A 404 or 502 is another
        # program.
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False


@contextmanager
def prefect_api(say: Callable[[str], None]) -> Iterator[str]:
    """Make a Prefect API available to this process for the length of the block; yield its URL.

    In this order: the configured one (``PREFECT_API_URL`` of the environment or the Prefect profile) if it
    answers, that of a running `jora serve`, a temporary server of our own.

    Raises:
        StageFailed: a temporary server did not start; the message holds its last lines.
    """
    prepare_environment()
    # Two servers on one SQLite database block one another, so one that runs already is always preferred.
    for url in known_urls():
        if answers(url):
            with _use(url):
                yield url
            return
        say(f"no Prefect server answers at {url}")
    # Without a UI there is no page for the "View at …" lines to name.
    with temporary_server() as url, _use(url, ui_url=""):
        yield url


@contextmanager
def temporary_server() -> Iterator[str]:
    """Run a server without UI or scheduler on a free port and Prefect's usual database; yield its API URL."""
    # What `prefect.server.api.server.SubprocessASGIServer` runs, without its orphan.
    command = supervised_process.python_module(
        "uvicorn",
        "--factory",
        "prefect.server.api.server:create_app",
        "--host",
        "127.0.0.1",
        "--port",
        str(port := free_port()),
        "--log-level",
        "error",
        "--lifespan",
        "on",
    )
    env = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    with running_server(command, env, f"http://127.0.0.1:{port}/api"):
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def running_server(
    command: list[str], env: Mapping[str, str], api_url: str
) -> Iterator[supervised_process.Supervised]:
    """Run a server process while the block lasts; the block begins when it answers.

    Args:
        command: program and arguments.
        env: added to our environment.
        api_url: where it answers.

    Raises:
        StageFailed: it ended or did not answer in time; the message holds its last lines.
        InputError: Prefect's folder cannot be written.
    """
    with one_line_os_errors("write Prefect's folder (PREFECT_HOME)", prefect_home()):
        prefect_home().mkdir(parents=True, exist_ok=True)
    # A file and not a pipe: a pipe that nobody reads fills, and then the server blocks at its next line.
    with tempfile.TemporaryFile() as log:
        server = supervised_process.start(command, {**env, "PREFECT_API_URL": api_url}, log.fileno())
        try:
            deadline = time.monotonic() + STARTUP_SECONDS
            while not answers(api_url, seconds=1):
                if server.ended() or time.monotonic() > deadline:
                    log.seek(0)
                    # The last lines hold the reason, for example a port in use or a database of a newer
                    # Prefect.
                    tail = log.read().decode("utf-8", "replace").strip().splitlines()[-15:]
                    how = "ended" if server.ended() else f"did not answer within {STARTUP_SECONDS} s"
                    advice = f"set PREFECT_API_URL to a running one, or PREFECT_HOME (now {prefect_home()})"
                    raise StageFailed("\n".join([f"the Prefect server {how}; {advice}", *tail]))
                # Each probe is a request that the starting server must answer, too.
                time.sleep(0.1)
            yield server
        finally:
            server.end(STOP_SECONDS)


def free_port() -> int:
    """Return a local TCP port that nobody listens on now."""
    with socket.socket() as probe:
        # Port 0 lets the kernel choose. Another program could take the port before the server does; then
        # the server ends and `running_server` says so.
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def known_urls() -> list[str]:
    """Return the API addresses to try, the configured one first."""
    from prefect.settings import get_current_settings

    urls = [get_current_settings().api.url]
    with suppress(OSError):
        # Read last and not required: a `jora serve` that was killed with -9 leaves its note, which
        # `answers` then refutes.
        urls.append(served_url_file().read_text(encoding="utf-8").strip())
    return list(dict.fromkeys(url for url in urls if url))


@contextmanager
def _use(api_url: str, ui_url: str | None = None) -> Iterator[None]:
    """Point Prefect in this process, all of its threads and its children at ``api_url``."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

    wanted = {"PREFECT_API_URL": api_url} | ({} if ui_url is None else {"PREFECT_UI_URL": ui_url})
    before = {name: os.environ.get(name) for name in wanted}
    # The environment for child processes, which inherit it.
    os.environ.update(wanted)
    # The global settings serve Prefect's own threads (logs, events), the temporary ones this thread.
    refresh_global_settings_context()
    settings: dict[Any, Any] = {PREFECT_API_URL: api_url} | (
        {} if ui_url is None else {PREFECT_UI_URL: ui_url}
    )
    try:
        with temporary_settings(settings):
            try:
                yield
            finally:
                # Inside the block: the threads still send to this server.
                _flush_logs_and_events()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        refresh_global_settings_context()


def _flush_logs_and_events() -> None:
    """Wait for Prefect's threads to send logs and events: once the server has ended, they print errors."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)
