"""The processes and settings of deploy/compose, natively: Postgres, Redis, server, services, two workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.flows.toy_pipeline import TOY_STAGES, log, toy_config

ROOT = Path(__file__).resolve().parents[2]
# Not every minute: a run that is still waiting when the next one is due is skipped.
EVERY_THREE_MINUTES = "*/3 * * * *"
# Slow as well as service: a database of its own, five programs and two Python workers start.
pytestmark = [pytest.mark.service, pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Running:
    """A running stack, and the environment of its clients."""

    folder: Path
    environment: dict[str, str]

    @property
    def api_url(self) -> str:
        return self.environment["PREFECT_API_URL"]

    def logs(self) -> str:
        paths = sorted((self.folder / "logs").glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api_url, auth_string=self.environment["PREFECT_API_AUTH_STRING"])

    def register(self, config: Path, pool: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "flows.orchestration.work_pool",
            str(config),
            "--pool",
            pool,
            *options,
        ]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, cwd=ROOT, check=False
        )


def wait_for(condition: Callable[[], Any], seconds: float, explain: Callable[[], str]) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    if not shutil.which("redis-server") or not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("Postgres and Redis are not installed (Debian packages postgresql and redis-server)")
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("no setpriv, and Postgres refuses to run as root")
    # Not pytest's folder: it is closed to other users, and Postgres runs as one.
    folder = Path(tempfile.mkdtemp(prefix="jora-stack-"))
    folder.chmod(0o711)
    shutil.copyfile(ROOT / "tests" / "flows" / "toy_site.py", folder / "sitecustomize.py")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "TOY_ROOT": str(ROOT),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    }
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "deploy" / "native" / "stack.py"), "--folder", str(folder)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        text = (folder / "output.txt").read_text
        wait_for(lambda: "ready" in text() or process.poll() is not None, 600, text)
        assert process.poll() is None, text()
        yield Running(folder, environment | json.loads((folder / "client.json").read_text()))
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 0, text()
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def config_file(running: Running, tmp_path: Path) -> Path:
    config = toy_config(tmp_path, schedule={"cron": EVERY_THREE_MINUTES})
    path = tmp_path / "toy.yaml"
    path.write_text(config.model_dump_json())
    return path


def test_cron_fires_and_completes(running: Running, config_file: Path) -> None:
    done = running.register(config_file, "jora-gpu")
    assert done.returncode == 0, done.stderr
    names = {"raft-pipeline", "advanced", "data-watch", *TOY_STAGES}
    assert set(done.stdout.strip().split(": ")[1].split(", ")) == names
    # A second registration changes nothing and makes nothing twice.
    assert running.register(config_file, "jora-gpu", "--only", "evaluate").returncode == 0

    with running.client() as client:
        deployment = client.read_deployment_by_name("raft-pipeline/raft-pipeline")
        assert deployment.work_pool_name == "jora-gpu"

        def completed() -> Any:
            runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]
            bad = [run for run in runs if run.state.name in ("Failed", "Crashed")]
            assert not bad, f"{bad[0].state.message}\n{running.logs()}"
            return [run for run in runs if run.state.name == "Completed"]

        runs = wait_for(completed, 700, running.logs)
        assert runs[0].auto_scheduled
    assert set(log(toy_config(config_file.parent))) == set(TOY_STAGES)
    for name in ("server", "services"):
        text = (running.folder / "logs" / f"{name}.log").read_text()
        assert "ConnectionError" not in text and "Traceback" not in text, text


def test_the_other_worker_runs_a_submitted_stage(running: Running, config_file: Path) -> None:
    # A secret from a block: without its value the run would not find the toy stages.
    code = "import sys; from prefect.blocks.system import Secret\n"
    code += "Secret(value=sys.argv[1]).save('toy-root', overwrite=True)"
    subprocess.run([sys.executable, "-c", code, str(ROOT)], env=running.environment, check=True)
    reference = "TOY_ROOT={{ prefect.blocks.secret.toy-root }}"
    done = running.register(config_file, "jora-cpu", "--only", "build-context", "--env", reference)
    assert done.returncode == 0, done.stderr
    with running.client() as client:
        deployment = client.read_deployment_by_name("build-context/build-context")
        assert str(ROOT) != deployment.job_variables["env"]["TOY_ROOT"] == reference.partition("=")[2]
        run = client.create_flow_run_from_deployment(deployment.id)
        wait_for(lambda: client.read_flow_run(run.id).state.is_final(), 300, running.logs)
        assert client.read_flow_run(run.id).state.name == "Completed", running.logs()
    assert log(toy_config(config_file.parent)) == ["build-context"]


def test_wrong_names_are_refused(running: Running, config_file: Path) -> None:
    for options, expected in (
        (("nowhere",), "no work pool 'nowhere'; create it with `prefect work-pool create nowhere`"),
        (("jora-cpu", "--only", "evaluat"), "no deployment 'evaluat'; there are raft-pipeline"),
        (("jora-cpu", "--env", "SECRET"), "--env 'SECRET': expected NAME=VALUE"),
    ):
        done = running.register(config_file, *options)
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_runs_without_heartbeats_are_noticed(running: Running, config_file: Path) -> None:
    """A second registration updates the automation, so there is one."""
    for _ in range(2):
        assert running.register(config_file, "jora-cpu", "--only", "evaluate").returncode == 0
    with running.client() as client:
        (automation,) = [item for item in client.read_automations() if "flow-run" in str(item.trigger)]
        assert automation.enabled
        deployment = client.read_deployment_by_name("evaluate/evaluate")
        assert deployment.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_data_are_in_postgres_and_redis(running: Running) -> None:
    assert not list((running.folder / "prefect").glob("*.db")), "a process fell back to SQLite"
    password = (running.folder / "secrets" / "redis_password").read_text()
    port = next(
        line.split()[1]
        for line in (running.folder / "redis" / "redis.conf").read_text().splitlines()
        if line.startswith("port")
    )
    import redis

    for database in (0, 1):
        with redis.Redis(port=int(port), password=password, db=database) as client:
            assert client.dbsize() > 0, f"nothing in database {database}"


def test_requests_without_the_password_are_refused(running: Running) -> None:
    request = urllib.request.Request(
        f"{running.api_url}/flows/filter", data=b"{}", headers={"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 401
