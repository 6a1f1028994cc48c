"""A Prefect server that is gone in the middle of a run: the run goes on, says so, and is Completed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.children import supervised_process
from flows.orchestration.prefect_server import PATIENCE, free_port, running_server
from tests.flows.orchestration.test_serve import environment_of, start, wait_for
from tests.flows.toy_pipeline import log, toy_config

# JORA_OUTAGE_SECONDS=600 is the outage of ten minutes.
OUTAGE_SECONDS = float(os.environ.get("JORA_OUTAGE_SECONDS", "30"))
pytestmark = [pytest.mark.service, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_a_call_waits_for_ten_minutes() -> None:
    """Prefect doubles the pause after each attempt, and makes it up to a fifth shorter at random."""
    retries = int(PATIENCE["PREFECT_CLIENT_MAX_RETRIES"])
    assert 0.8 * sum(2**attempt for attempt in range(1, retries + 1)) > 600


@contextmanager
def server(home: Path, port: int) -> Iterator[str]:
    """Run a Prefect server of its own during the block."""
    url = f"http://127.0.0.1:{port}/api"
    command = supervised_process.python_module(
        "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)
    )
    with running_server(command, {"PREFECT_HOME": str(home)}, url):
        yield url


def test_run_outlives_its_server(tmp_path: Path) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    home, folder, port = tmp_path / "home", tmp_path / "project", free_port()
    home.mkdir()
    config = toy_config(folder)
    (folder / "network.txt").write_text("")
    (folder / "finetune-structure").write_text("linger 3000 done")
    text = (folder / "output.txt").read_text
    with server(home, port) as url:
        process = start(folder, environment_of(home, folder) | {"PREFECT_API_URL": url})
        with SyncPrefectClient(url) as client:
            deployment = client.read_deployment_by_name("raft-pipeline/raft-pipeline")
            run = client.create_flow_run_from_deployment(deployment.id)
        wait_for(lambda: "finetune-structure" in log(config), 600, text)
    try:
        begun = time.monotonic()
        wait_for(lambda: "does not answer; the run goes on" in text(), 300, text)
        # The stage and the one after it end while the server is away.
        (folder / "network.txt").write_text("done")
        wait_for(lambda: "evaluate" in log(config), 300, text)
        time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - begun)))
        with server(home, port) as url, SyncPrefectClient(url) as client:
            wait_for(lambda: client.read_flow_run(run.id).state.is_final(), 1800, text)
            found = client.read_flow_run(run.id)
            assert found.state.name == "Completed" and found.run_count == 1, text()
            # Neither the worker nor the run was started again.
            assert "starting another" not in text(), text()
            assert len(log(config)) == 4
    finally:
        process.terminate()
        process.wait(300)
