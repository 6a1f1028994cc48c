"""A cron schedule on one machine: `jora serve` with SQLite fires it and completes the run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.orchestration.prefect_server import free_port
from tests.flows.toy_pipeline import TOY_STAGES, log, toy_config

ROOT = Path(__file__).resolve().parents[2]
# Not every minute: a run that is still waiting when the next one is due is skipped.
SERVE = """
import sys
from pathlib import Path
from flows.orchestration.serve import serve
from tests.flows.toy_pipeline import toy_config
serve(toy_config(Path(sys.argv[1]), schedule={"cron": "*/3 * * * *"}), int(sys.argv[2]))
"""


@pytest.mark.service
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cron_fires_and_completes(tmp_path: Path) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    shutil.copyfile(ROOT / "tests" / "flows" / "toy_site.py", tmp_path / "sitecustomize.py")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {
        **kept,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "TOY_ROOT": str(ROOT),
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    }
    port = free_port()
    output = tmp_path / "output.txt"
    with output.open("wb") as file:
        command = [sys.executable, "-c", SERVE, str(tmp_path / "project"), str(port)]
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 1200
        runs: list[object] = []
        with SyncPrefectClient(f"http://127.0.0.1:{port}/api") as client:
            while not runs:
                assert process.poll() is None and time.monotonic() < deadline, output.read_text()
                time.sleep(1)
                if "Ctrl-C ends" in output.read_text():
                    found = client.read_flow_runs()
                    assert not [run for run in found if run.state and run.state.name in ("Failed", "Crashed")]
                    runs = [run for run in found if run.auto_scheduled and run.state.is_completed()]
        assert set(log(toy_config(tmp_path / "project"))) == set(TOY_STAGES)
        assert list((tmp_path / "prefect").glob("prefect.db"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()
