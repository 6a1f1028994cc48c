"""Find the Prefect server of a run, or start a temporary one that ends with this process.

Prefect's own temporary server is a plain child process, which outlives a killed parent. Our server runs under
:mod:`flows.children.supervisor`. The import of this module does not import Prefect, because the environment
must be set before.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.children import supervised_process
from flows.engine.errors import StageFailed, one_line_os_errors
from jora_core.base.errors import InputError

# Prefect reads these variables at its import. A variable that the user has set keeps its value. They stop:
# - DO_NOT_TRACK: the client library's usage events (api2.amplitude.com).
# - PREFECT_SERVER_ANALYTICS_ENABLED: the server's heartbeat (sens-o-matic.prefect.io), the UI's usage events.
# - PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY and PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS: exporters that
#   are idle without an endpoint. They are off in any case.
# - HF_HUB_DISABLE_TELEMETRY: usage events of the Hugging Face libraries.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# For a server that may come back. Prefect's client waits 2, 4, 8, … 512 s between the attempts of one call,
# 1,022 s in all; by default it gives up after 62 s. A temporary server does not come back.
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "9"}
# Variable with the folder that paths count from, for workers that have another working directory.
FOLDER = "JORA_FOLDER"
# Without any progress. A fresh database takes 8 s of migrations, and minutes on a machine that is busy
# training; Prefect gives up after 20 s.
STARTUP_SECONDS = 300
LINE_SECONDS = 10.0  # between lines about a start that takes long
DEFAULT_PORT = 4200  # Prefect's own
PROBE_SECONDS = 3.0
_BODY_BYTES = 1000  # that are read of an answer; Prefect's are shorter
STOP_SECONDS = 10.0


def prepare_environment() -> None:
    """Switch off Prefect's outbound calls, and give its server time to start.

    Call this before the import of Prefect, which reads the environment.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(STARTUP_SECONDS))
    # A server that this process starts asks for this password, so our own calls must send it.
    if server_password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", server_password)


def prefect_home() -> Path:
    """Return the folder of Prefect's database and profiles: ``PREFECT_HOME``, by default ``~/.prefect``."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()


def served_url_file() -> Path:
    """Return the file with the API address of a running `jora serve`, which other runs read."""
    return prefect_home() / "jora-serve.url"


def answers(api_url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a Prefect API answers at ``api_url``; a server that requires a password counts as an answer."""
    status, body = _get(f"{api_url.rstrip('/')}/health", {}, seconds)
    # 401 and 403 come from a Prefect server that requires credentials. 404 or 502 come from another program,
    # and so does a page of HTML, such as that of a proxy where users sign in.
    return status in (401, 403) or (status == 200 and _is_json(body))


def require_free(port: int) -> None:
    """Refuse a port on which another program listens, before a server takes long to find it out.

    Raises:
        InputError: the port cannot be used.
    """
    with socket.socket() as probe:
        # As the server does, so that connections that were closed a moment ago are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be used ({error.strerror}); give another one with --port"
            ) from error


def check_access(api_url: str, seconds: float = PROBE_SECONDS) -> None:
    """Check that the Prefect server at ``api_url`` accepts our credentials.

    Raises:
        InputError: the server requires a password, and ours is missing or wrong.
    """
    # Imported by every caller soon after; here it knows the environment and the profile.
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    headers: dict[str, str] = {}
    if api.auth_string is not None:
        encoded = base64.b64encode(api.auth_string.get_secret_value().encode()).decode()
        headers["Authorization"] = f"Basic {encoded}"
    elif api.key is not None:
        headers["Authorization"] = f"Bearer {api.key.get_secret_value()}"
    # Not `/health`, which answers everybody.
    status, _ = _get(f"{api_url.rstrip('/')}/admin/version", headers, seconds)
    if status in (401, 403):
        found = "refuses the password of PREFECT_API_AUTH_STRING" if headers else "requires a password"
        raise InputError(
            f"the Prefect server at {api_url} {found}; run `export PREFECT_API_AUTH_STRING=USER:PASSWORD` "
            "with the value that the server has in PREFECT_SERVER_API_AUTH_STRING"
        )


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _get(url: str, headers: Mapping[str, str], seconds: float) -> tuple[int, bytes]:
    """Return status and beginning of the body of a GET request; (0, b"") without an answer in HTTP."""
    try:
        # A company's HTTP proxy cannot reach this machine's ports and would answer with an error of its own.
        local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        handlers = [urllib.request.ProxyHandler({})] if local else []
        request = urllib.request.Request(url, headers=dict(headers))
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
            return answer.status, answer.read(_BODY_BYTES)
    except urllib.error.HTTPError as error:
        return error.code, b""
    # The second is what other programs than HTTP servers give.
    except (OSError, http.client.HTTPException, ValueError):
        return 0, b""


@contextmanager
def prefect_api(say: Callable[[str], None]) -> Iterator[str]:
    """Make a Prefect API available to this process during the block; yield its URL.

    The first of these APIs is used: the configured API (``PREFECT_API_URL`` of the environment or the Prefect
    profile) if it answers, the API of a running `jora serve`, or a temporary server of our own.

    Raises:
        StageFailed: the temporary server did not start. The message contains its last lines.
        InputError: the server that answers requires a password, and ours is missing or wrong.
    """
    prepare_environment()
    # Two servers on one SQLite database block one another, so one that runs already is always preferred.
    for url in known_urls():
        if answers(url):
            check_access(url)
            with use_api(url, patient=True):
                yield url
            return
        say(f"no Prefect server answers at {url}")
    # Without a UI there is no page that Prefect's "View at …" lines could name.
    with temporary_server(say) as url, use_api(url, ui_url=""):
        yield url


@contextmanager
def temporary_server(say: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """Run a Prefect server during the block; yield its API URL.

    The server has neither UI nor scheduler. It uses a free port and Prefect's usual database. ``say`` is
    called with lines about a start that takes long.
    """
    # The command of `prefect.server.api.server.SubprocessASGIServer`, whose server may outlive its parent.
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
    url = local_url(port)
    with running_server(command, env, url, say):
        yield url


@contextmanager
def running_server(
    command: list[str],
    env: Mapping[str, str],
    api_url: str,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[supervised_process.Supervised]:
    """Run a server process during the block, which begins when the server answers.

    Args:
        command: program and arguments.
        env: variables to add to our environment.
        api_url: address at which the server answers.
        say: called every few seconds with what the start waits for.

    Raises:
        StageFailed: the server ended, or did not answer and made no progress for `STARTUP_SECONDS`. The
            message contains its last lines.
        InputError: Prefect's folder cannot be written.
    """
    with one_line_os_errors("write Prefect's folder (PREFECT_HOME)", prefect_home()):
        prefect_home().mkdir(parents=True, exist_ok=True)
    # A file, not a pipe: a pipe without a reader fills, and then the server blocks at its next line.
    with tempfile.TemporaryFile() as log:
        server = supervised_process.start(command, {**env, "PREFECT_API_URL": api_url}, log.fileno())
        try:
            start = _Start(time.monotonic(), server.pid, new_database=not _database().exists())
            while not answers(api_url, seconds=1):
                if server.ended() or start.stalled():
                    log.seek(0)
                    # The last lines hold the reason, for example a port in use or a database of a newer
                    # Prefect.
                    tail = log.read().decode("utf-8", "replace").strip().splitlines()[-15:]
                    how = "ended" if server.ended() else f"made no progress for {STARTUP_SECONDS} s"
                    advice = f"set PREFECT_API_URL to a running one, or PREFECT_HOME (now {prefect_home()})"
                    raise StageFailed("\n".join([f"the Prefect server {how}; {advice}", *tail]))
                if line := start.due_line():
                    say(line)
                # Each probe is a request that the starting server must answer, too.
                time.sleep(0.1)
            yield server
        finally:
            server.end(STOP_SECONDS)


@dataclass
class _Start:
    """The start of a server: what it waits for, and whether it makes progress.

    Attributes:
        begun: time of the start, in seconds of the monotonic clock.
        pid: id of the server's process group.
        new_database: whether the server must create its database first.
    """

    begun: float
    pid: int
    new_database: bool
    last_progress: float = field(init=False)
    last_seen: tuple[int, ...] = field(init=False, default=())
    next_line: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_progress = self.begun
        self.next_line = self.begun + LINE_SECONDS

    def stalled(self) -> bool:
        """Whether the server has neither computed nor written anything for `STARTUP_SECONDS`."""
        now = time.monotonic()
        seen = (processor_ticks(self.pid), *_database_state())
        if seen != self.last_seen:
            self.last_seen, self.last_progress = seen, now
        # A server that only computes for half an hour hangs in a loop.
        return now - self.last_progress > STARTUP_SECONDS or now - self.begun > 6 * STARTUP_SECONDS

    def due_line(self) -> str | None:
        """Return a line about the start every `LINE_SECONDS`, else None."""
        now = time.monotonic()
        if now < self.next_line:
            return None
        self.next_line = now + LINE_SECONDS
        what = "creating Prefect's database" if self.new_database else "starting Prefect's server"
        # The growing size shows that the migrations go on.
        size = sum(_database_state()[:1])
        progress = f", {size / 2**20:.1f} MiB so far" if self.new_database and size else ""
        return f"{what}{progress}, {now - self.begun:.0f} s"


def _database() -> Path:
    return prefect_home() / "prefect.db"


def _database_state() -> tuple[int, int]:
    """Return the size in bytes of the local database with its journal, and its last change."""
    size, changed = 0, 0
    for path in (_database(), Path(f"{_database()}-wal")):
        with suppress(OSError):
            found = path.stat()
            size, changed = size + found.st_size, max(changed, found.st_mtime_ns)
    return size, changed


def processor_ticks(group: int) -> int:
    """Return the processor time of all processes of a group, in clock ticks; 0 where /proc is missing."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            words = entry.read_text().rpartition(")")[2].split()
            if int(words[2]) == group:
                total += int(words[11]) + int(words[12])
    return total


def free_port() -> int:
    """Return a local TCP port on which no program listens now."""
    with socket.socket() as probe:
        # Port 0 lets the kernel choose. Another program could take the port before the server does; then
        # the server ends and `running_server` says so.
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def local_url(port: int) -> str:
    """Return the API address of a server on a port of this machine."""
    return f"http://127.0.0.1:{port}/api"


def known_urls() -> list[str]:
    """Return the API addresses to try: the configured address, then that of `jora serve`."""
    from prefect.settings import get_current_settings

    urls = [get_current_settings().api.url]
    with suppress(OSError):
        # Read last, because a `jora serve` that was killed with -9 leaves its file behind. `answers` then
        # finds that no server is there.
        urls.append(served_url_file().read_text(encoding="utf-8").strip())
    return list(dict.fromkeys(url for url in urls if url))


@contextmanager
def use_api(api_url: str, ui_url: str | None = None, patient: bool = False) -> Iterator[None]:
    """Set Prefect's API for this process, its threads and its child processes.

    Args:
        api_url: address of the API.
        ui_url: address of the UI; None leaves it as it is.
        patient: whether calls wait for a server that does not answer (`PATIENCE`).
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_UI_URL,
        temporary_settings,
    )

    wanted = {"PREFECT_API_URL": api_url} | ({} if ui_url is None else {"PREFECT_UI_URL": ui_url})
    # What the user has set holds.
    wanted |= {name: value for name, value in PATIENCE.items() if patient and name not in os.environ}
    before = {name: os.environ.get(name) for name in wanted}
    # The environment for child processes, which inherit it.
    os.environ.update(wanted)
    # The global settings serve Prefect's own threads (logs, events), the temporary ones this thread.
    refresh_global_settings_context()
    names = {
        "PREFECT_API_URL": PREFECT_API_URL,
        "PREFECT_UI_URL": PREFECT_UI_URL,
        "PREFECT_CLIENT_MAX_RETRIES": PREFECT_CLIENT_MAX_RETRIES,
    }
    settings: dict[Any, Any] = {names[name]: value for name, value in wanted.items()}
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
    """Wait until Prefect's threads have sent logs and events; after the server's end they print errors."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)
