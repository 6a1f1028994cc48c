"""Finding and starting the Prefect server: passwords, a start that takes long, and one that hangs."""

from __future__ import annotations

import os
import socket
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
from flows.orchestration.prefect_server import answers, check_access, free_port, running_server
from jora_core.base.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
pytest_plugins = ["tests.flows.prefect_session"]


class _WithPassword(BaseHTTPRequestHandler):
    """A server that answers everybody under `/health`, and others with a password only."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic " + "YTpi"  # a:b
        self.send_response(200 if self.path.endswith("/health") or known else 401)
        self.end_headers()
        self.wfile.write(b"true")

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


Reply = tuple[int, dict[str, str], bytes]
PAGE = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
#: What is at the address: the reply to every path, and whether that counts as a Prefect server.
REPLIES: dict[str, tuple[Reply, bool]] = {
    "prefect": ((200, {}, b"true"), True),
    "401": ((401, {}, b'{"exception_message": "Unauthorized"}'), True),
    "401-without-a-body": ((401, {"WWW-Authenticate": "Basic"}, b""), True),
    "403": ((403, {}, b"Forbidden"), True),
    "403-of-html": ((403, {"Content-Type": "text/html"}, PAGE), True),
    "404": ((404, {}, b"not here"), False),
    "500": ((500, {}, b"oops"), False),
    "502-of-html": ((502, {"Content-Type": "text/html"}, PAGE), False),
    "html": ((200, {"Content-Type": "text/html"}, PAGE), False),
    "long-html": ((200, {}, PAGE + b"x" * 100_000), False),
    "text": ((200, {}, b"It works!"), False),
    "nothing": ((200, {}, b""), False),
    "bytes": ((200, {}, b"\xff\xfe\x00"), False),
    "redirect-to-itself": ((302, {"Location": "/login"}, b""), False),
}


@contextmanager
def server_that_says(reply: Reply) -> Iterator[str]:
    status, headers, body = reply

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", REPLIES)
def test_only_a_prefect_server_is_one(name: str) -> None:
    reply, is_prefect = REPLIES[name]
    with server_that_says(reply) as url:
        assert answers(url) == answers(url + "/") == is_prefect
        if reply[0] in (401, 403):
            with pytest.raises(InputError, match="requires a password") as caught:
                check_access(url)
            assert url in str(caught.value) and "\n" not in str(caught.value)
        else:
            check_access(url)


def test_a_program_that_does_not_speak_http_is_no_server() -> None:
    """As a database or an SSH server at the port; one that says nothing takes the time of a probe."""
    for said in (b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00\x01\x02", b"HTTP/1.1 two hundred\r\n\r\n", b""):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def talk(listener: socket.socket = listener, said: bytes = said) -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(said)

            thread = threading.Thread(target=talk, daemon=True)
            thread.start()
            assert not answers(f"http://127.0.0.1:{listener.getsockname()[1]}/api")
            thread.join()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}/api", "https://127.0.0.1:{}/api", "http://[::1", "nonsense"]
)
def test_nobody_at_the_address(url: str) -> None:
    assert not answers(url.format(free_port()), seconds=1)


def test_jora_run_says_one_line_at_401(tmp_path: Path, prefect_home: Path) -> None:
    with server_with_password() as url:
        environment = {**os.environ, "PREFECT_API_URL": url}
        sample = ROOT / "flows" / "configs" / "sample.yaml"
        store = f"store={tmp_path / 'runs'}"
        command = [sys.executable, "-m", "flows.cli", "run", str(sample), "--set", store]
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
