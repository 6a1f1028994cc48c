"""Finding and starting the Prefect server: passwords, a start that takes long, and one that hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.engine.errors import StageFailed
from flows.orchestration import prefect_server
from flows.orchestration.prefect_server import free_port, running_server

ROOT = Path(__file__).resolve().parents[3]
pytest_plugins = ["tests.flows.prefect_session"]


class _WithPassword(BaseHTTPRequestHandler):
    """A server that answers everybody under `/health`, and others with a password only."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic " + "YTpi"  # a:b
        self.send_response(200 if self.path.endswith("/health") or known else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server_with_password() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _WithPassword)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()


def test_a_password_that_is_missing_or_wrong_is_one_line(
    monkeypatch: pytest.MonkeyPatch, prefect_home: Path
) -> None:
    with server_with_password() as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        for given, message in ((None, "requires a password"), ("a:x", "refuses the password")):
            environment = {**os.environ, **({"PREFECT_API_AUTH_STRING": given} if given else {})}
            code = f"from flows.orchestration.prefect_server import check_access as c\nc({url!r})"
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
            )
            last = done.stderr.strip().splitlines()[-1]
            assert message in last and "PREFECT_API_AUTH_STRING" in last
        code = f"from flows.orchestration.prefect_server import check_access as c\nc({url!r})"
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PREFECT_SERVER_API_AUTH_STRING": "a:b", "PREFECT_API_AUTH_STRING": "a:b"},
            check=True,
        )


def test_jora_run_says_one_line_at_401(tmp_path: Path, prefect_home: Path) -> None:
    with server_with_password() as url:
        environment = {**os.environ, "PREFECT_API_URL": url}
        command = [sys.executable, "-m", "flows.cli", "run", "--set", f"store={tmp_path / 'runs'}"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the Prefect server at {url} requires a password")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_slow_start_is_told_and_a_hanging_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(prefect_server, "STARTUP_SECONDS", 3.0)
    monkeypatch.setattr(prefect_server, "LINE_SECONDS", 0.5)
    said: list[str] = []
    command = [sys.executable, "-c", "print('migrating', flush=True); import time; time.sleep(600)"]
    url = f"http://127.0.0.1:{free_port()}/api"
    with (
        pytest.raises(StageFailed, match=r"no progress for 3.0 s.*\n.*migrating"),
        running_server(command, {}, url, said.append),
    ):
        raise AssertionError("it never answers")
    assert said and said[0].startswith("creating Prefect's database")
