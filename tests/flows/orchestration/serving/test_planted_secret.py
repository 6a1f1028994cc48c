"""Planted secrets are in nothing that a served pipeline writes or shows. A password closes its API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.flows.orchestration.serving.small_project import ROOT, SmallProject, serving, write_project
from tests.flows.orchestration.test_serve import wait_for

TOKEN = "pl4nted-t0ken-of-the-source"
TYPED = "pl4nted-t0ken-that-was-typed"
PASSWORD = "operator:pl4nted-passw0rd"
SECRETS = (TOKEN, TYPED, PASSWORD, PASSWORD.partition(":")[2])

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@contextmanager
def questions_behind_a_token(folder: Path) -> Iterator[str]:
    """Serve a folder to those who know one of the tokens; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            found = folder / path.strip("/")
            known = query in (f"token={TOKEN}", f"token={TYPED}")
            status = 403 if not known else 200 if found.is_file() else 404
            body = found.read_bytes() if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def write_planted(folder: Path, address: str) -> None:
    """Write the small project with its questions behind a URL with a reference to a token."""
    path = write_project(folder)
    config = yaml.safe_load(path.read_text())
    (folder / "questions.jsonl").rename(folder.with_name("questions.jsonl"))
    config["context"]["qa"]["questions"] = f"{address}/questions.jsonl?token=${{PLANTED}}"
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def jora(project: SmallProject, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder of the project, with the address of its server."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def submit(client: Any, **parameters: Any) -> Any:
    """Submit a run of all stages and wait for its end; return the run."""
    deployment = client.read_deployment_by_name("raft-pipeline/raft-pipeline")
    made = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    wait_for(lambda: client.read_flow_run(made.id).state.is_final(), 1800, lambda: str(made.id))
    return client.read_flow_run(made.id)


def command_lines() -> str:
    """Return the command lines of all processes, which every user of the machine can read."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(found)


def texts_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file; those of the values and metadata too where they are compressed."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield json.dumps(table.to_pylist(), default=str).encode()
        yield str(table.schema.metadata).encode()


def test_secrets_and_password(tmp_path: Path) -> None:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.exceptions import PrefectHTTPStatusError

    folder = tmp_path / "project"
    with questions_behind_a_token(tmp_path) as address:
        write_planted(folder, address)
        given = {"PLANTED": TOKEN, "PREFECT_API_AUTH_STRING": PASSWORD, "JORA_CACHE": str(tmp_path / "cache")}
        with serving(folder, given={**given, "PREFECT_SERVER_API_AUTH_STRING": PASSWORD}) as project:
            shown = []
            kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            open_to_all = {
                **kept,
                **{name: value for name, value in given.items() if not name.startswith("PREFECT_")},
                "PYTHONPATH": str(ROOT),
                "PREFECT_HOME": str(tmp_path / "client"),
                "PREFECT_API_URL": project.api_url,
            }
            known = {**open_to_all, **given}

            # Without the password nothing is shown and nothing runs.
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{project.api_url}/admin/settings", timeout=60)
            assert refused.value.code == 401
            done = jora(project, open_to_all, "run", "small.yaml")
            assert done.returncode == 2 and done.stderr.count("\n") == 1
            assert "requires a password" in done.stderr
            assert jora(project, open_to_all, "serve", "small.yaml", "--check").returncode != 0

            with SyncPrefectClient(project.api_url, auth_string=PASSWORD) as client:
                whole = submit(client)
                assert whole.state.name == "Completed", project.output
                shown.append(command_lines())
                # A token in plain is refused before the server keeps it.
                with pytest.raises(PrefectHTTPStatusError, match="in place of a password or token"):
                    submit(client, changes=[f"context.qa.questions={address}/questions.jsonl?token={TYPED}"])
                missing = submit(
                    client, changes=[f"context.qa.questions={address}/no.jsonl?token=${{PLANTED}}"]
                )
                assert missing.state.name == "Failed", project.output
                assert "no.jsonl?token=${PLANTED}" in missing.state.message
                shown.append(str(missing.model_dump(mode="json")))
                deployments = client.read_deployments()
                shown += [str(item.model_dump(mode="json")) for item in deployments]
                shown += [str(item.model_dump(mode="json")) for item in client.read_artifacts()]

            for words in (
                ("run", "small.yaml", "--force", "--only", "evaluate"),
                ("plan", "small.yaml"),
                ("plan", "small.yaml", "--json"),
                ("why", "build-context", "small.yaml"),
                ("runs", "small.yaml"),
                ("serve", "small.yaml", "--check"),
                ("run", "small.yaml", "--set", f"context.qa.questions={address}/no.jsonl?token={TYPED}"),
            ):
                done = jora(project, known, *words)
                assert done.returncode == (2 if "--set" in words else 0), f"{words}: {done.stderr}"
                shown += [done.stdout, done.stderr]
        shown.append(project.output)
    for text in shown:
        for secret in SECRETS:
            assert secret not in text, text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "prefect.db" for path in files) and any(
        path.suffix == ".parquet" for path in files
    )
    for path in files:
        for content in texts_of(path):
            for secret in SECRETS:
                assert secret.encode() not in content and secret not in str(path), f"{secret}: {path}"
