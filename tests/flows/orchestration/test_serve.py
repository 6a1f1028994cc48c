"""`jora serve` as a process: deployments, runs through the API, a schedule, and an end without orphans."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from flows.housekeeping.data_watch import Changes
from flows.orchestration.notifications import emit_data_changed
from flows.orchestration.prefect_server import answers, free_port, use_api
from jora_core.base.errors import InputError
from tests.flows.toy_pipeline import TOY_STAGES, log, toy_config

ROOT = Path(__file__).resolve().parents[3]
SERVE = """
import sys
from pathlib import Path
from flows.orchestration.serve import serve
from tests.flows.toy_pipeline import toy_config
schedule = {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "watch_minutes": 600, "settle_seconds": 1}
port = int(sys.argv[2]) if len(sys.argv) > 2 else None
serve(toy_config(Path(sys.argv[1]), schedule=schedule), port)
"""
pytest_plugins = ["tests.flows.prefect_session"]
# A busy machine takes minutes to start a server.
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Served:
    """A running `jora serve`."""

    process: subprocess.Popen[bytes]
    folder: Path
    api_url: str
    home: Path
    environment: dict[str, str]

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api_url)

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    @property
    def configuration(self) -> str:
        """Name of the configuration in the forms."""
        with self.client() as client:
            return client.read_deployment_by_name("raft-pipeline/raft-pipeline").parameters["configuration"]

    def artifacts(self) -> set[tuple[str, str]]:
        """Key and text of each artifact of a flow run."""
        with self.client() as client:
            return {(item.key, str(item.data)) for item in client.read_artifacts() if item.key}

    def run(self, deployment: str, **parameters: Any) -> Any:
        """Submit a run through the API and wait for its end; return its state."""
        with self.client() as client:
            chosen = client.read_deployment_by_name(f"{deployment}/{deployment}")
            made = client.create_flow_run_from_deployment(chosen.id, parameters=parameters)
            wait_for(lambda: client.read_flow_run(made.id).state.is_final(), 900, lambda: self.output)
            return client.read_flow_run(made.id).state


def wait_for(condition: Callable[[], Any], seconds: float, explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


def processes_with(mark: str, pids: bool = False) -> list[str]:
    """Command lines of the living processes whose environment holds ``mark``, after their ids if ``pids``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if alive and mark.encode() in (folder / "environ").read_bytes():
                    words = (folder / "cmdline").read_text().replace("\0", " ")
                    found.append(f"{folder.name} {words}" if pids else words)
            except OSError:
                continue
    return found


def environment_of(home: Path, mark: Path) -> dict[str, str]:
    """Environment of a served process: toy stages, its own Prefect home, a mark to find children by."""
    shutil.copyfile(ROOT / "tests" / "flows" / "toy_site.py", home / "sitecustomize.py")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    path = os.pathsep.join([str(home), str(ROOT)])
    return {
        **kept,
        "PREFECT_HOME": str(home),
        "PYTHONPATH": path,
        "TOY_ROOT": str(ROOT),
        "TOY_MARK": str(mark),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }


def start(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """Start serving ``folder`` and wait until it is ready."""
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(folder), *arguments],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=file,
        )
    try:
        ready = b"Ctrl-C ends"
        wait_for(lambda: ready in output.read_bytes() or process.poll() is not None, 900, output.read_text)
        assert process.poll() is None, output.read_text()
    except BaseException:
        process.kill()
        raise
    return process


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, prefect_home: Path, prefect_url: str
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    home = tmp_path_factory.mktemp("home")
    # A copy of the session's database saves the migrations of a fresh one.
    with sqlite3.connect(prefect_home / "prefect.db") as source, sqlite3.connect(home / "prefect.db") as copy:
        source.backup(copy)
    environment = environment_of(home, folder)
    port = free_port()
    process = start(folder, environment, str(port))
    yield Served(process, folder, f"http://127.0.0.1:{port}/api", home, environment)
    process.kill()
    process.wait()


def test_deployments_and_run_form(served: Served) -> None:
    with served.client() as client:
        found = {item.name: item for item in client.read_deployments()}
    assert set(found) == {"raft-pipeline", "advanced", "data-watch", *TOY_STAGES}
    pipeline = found["raft-pipeline"]
    assert pipeline.entrypoint == "flows.orchestration.pipeline_flow.raft_pipeline"
    (schedule,) = pipeline.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")
    (watching,) = found["data-watch"].schedules
    assert watching.schedule.interval == timedelta(hours=10)
    assert watching.parameters["configuration"] == pipeline.parameters["configuration"]
    scheduled = ("raft-pipeline", "data-watch")
    assert all(not item.schedules for name, item in found.items() if name not in scheduled)
    form = pipeline.parameter_openapi_schema
    assert list(form["properties"]) == ["configuration", "stages", "force", "dry_run", "changes"]
    assert form["required"] == ["configuration"] and form["definitions"] == {}
    address = f"{served.api_url.removesuffix('/api')}/v2/deployments/deployment/{pipeline.id}/run"
    assert address in served.output

    advanced = found["advanced"].parameter_openapi_schema
    assert advanced["required"] == ["config"] and found["advanced"].parameters["config"]["seed"] == 0
    # A schedule in the form of a run would do nothing.
    assert "schedule" not in advanced["definitions"]["PipelineConfig"]["properties"]
    assert "schedule" not in found["advanced"].parameters["config"]
    untitled = [
        f"{model}.{name}"
        for model, schema in advanced["definitions"].items()
        for name, field in schema["properties"].items()
        if "title" not in field
    ]
    assert untitled == []


def test_schedule_fires(served: Served) -> None:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    scheduled = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    )
    # The deployment `data-watch` has a schedule of its own.
    pipeline = DeploymentFilter(name=DeploymentFilterName(any_=["raft-pipeline"]))
    with served.client() as client:

        def found() -> list[Any]:
            return client.read_flow_runs(flow_run_filter=scheduled, deployment_filter=pipeline)

        wait_for(found, 60, lambda: served.output)
        run = found()[0]
        assert run.state.name == "Scheduled" and run.state.state_details.scheduled_time is not None


def test_runs_through_the_api(served: Served) -> None:
    config = toy_config(served.folder)
    assert served.run("raft-pipeline").name == "Completed", served.output
    assert sorted(log(config)) == sorted(TOY_STAGES)
    assert served.run("evaluate", force=True).name == "Completed", served.output
    assert log(config)[4:] == ["evaluate"]
    # What the form sends is checked before anything runs, and the message says what to write.
    for change, expected in (("seed=seven", "seed=<a whole number>"), ("sed=7", "key.path=value")):
        with pytest.raises(Exception, match=rf"changes\[0\].*{expected}"):
            served.run("evaluate", changes=[change])
    # A change that only the whole configuration can refuse is the message of the failed run.
    state = served.run("raft-pipeline", changes=["phases.0.tasks=[tables]"])
    assert state.name == "Failed" and "phases.0.tasks names tables" in state.message


def test_dry_run_and_unchanged_data(served: Served) -> None:
    """A dry run publishes the plan; a run without work publishes nothing, and says where the report is."""
    before = served.artifacts()
    state = served.run("raft-pipeline")
    said, _, place = state.message.partition("; report: ")
    assert (state.name, said) == ("Completed", "nothing to run: 4 stages verified")
    assert b"</html>" in urllib.request.urlopen(place).read()
    assert served.artifacts() == before
    config = toy_config(served.folder)
    state = served.run("raft-pipeline", dry_run=True, changes=["seed=9"])
    assert state.message == "dry run: 4 of 4 stages would run" and len(log(config)) == 5
    (plan,) = served.artifacts() - before
    assert plan[0] == "01-plan" and "config changed: seed 0 → 9" in plan[1]


def test_one_stage_says_what_is_missing_and_makes_it(served: Served) -> None:
    state = served.run("evaluate", changes=["seed=5"])
    assert state.name == "Failed"
    assert "missing: build-context, convert-model, finetune-structure" in state.message
    assert f"jora run {served.configuration} --set seed=5 --from build-context" in state.message
    state = served.run("evaluate", changes=["seed=5"], stages="this stage and what it needs")
    assert state.name == "Completed", served.output
    assert served.run("raft-pipeline", changes=["seed=5"], stages="from evaluate on").name == "Completed"


def test_changed_data_start_one_run(served: Served) -> None:
    """A look notes the sources, the next one finds a change and the automation runs the pipeline; bursts of
    events become one run."""
    config = toy_config(served.folder)
    assert served.run("data-watch").message == "first look: 1 source files noted"
    assert served.run("data-watch").message == "no change in 1 source files"
    before = len(log(config))
    (served.folder / "corpus.txt").write_text("a corpus of today\n")
    message = served.run("data-watch").message
    assert message == "1 changed (threads/corpus.txt); a run of the pipeline is requested"

    def started() -> list[Any]:
        with served.client() as client:
            runs = [run for run in client.read_flow_runs() if run.created_by]
        return [run for run in runs if run.created_by.type == "AUTOMATION"]

    def ended(count: int) -> bool:
        found = started()
        return len(found) == count and all(run.state.is_final() for run in found)

    wait_for(lambda: ended(1), 600, lambda: served.output)
    (run,) = started()
    assert run.state.name == "Completed" and run.parameters["configuration"] == served.configuration
    assert "build-context" in log(config)[before:]
    with use_api(served.api_url):
        for number in range(4):
            emit_data_changed(config, Changes(changed=(f"{number}.txt",)))
    wait_for(lambda: ended(5), 600, lambda: served.output)
    names = [run.state.name for run in started()]
    # The first of the four may have begun before the others came.
    assert names.count("Skipped") in (2, 3) and names.count("Completed") == 5 - names.count("Skipped")


def test_dead_worker_is_replaced_and_its_run_goes_on(served: Served) -> None:
    submitted = submit_hanging_run(served.api_url, served.folder, lambda: served.output)
    (served.folder / "finetune-structure").unlink()  # the next start of the stage goes well
    worker = [line for line in processes_with(str(served.folder), pids=True) if "serving.worker" in line]
    os.kill(int(worker[-1].split()[0]), signal.SIGKILL)
    wait_for(lambda: "starting another" in served.output, 300, lambda: served.output)
    with served.client() as client:
        wait_for(
            lambda: client.read_flow_run(submitted).state.name == "Completed", 600, lambda: served.output
        )
    assert "goes on from its checkpoints" in served.output
    (served.folder / "pids").unlink()


def test_jora_run_finds_the_served_server(served: Served) -> None:
    (served.folder / "corpus.txt").write_text("a new corpus\n")
    command = [sys.executable, "-m", "tests.flows.toy_pipeline", str(served.folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=served.environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and "build-context:run" in done.stdout, done.stderr
    assert f"View at {served.api_url.removesuffix('/api')}/runs" in done.stderr


def test_signal_ends_everything_in_order(served: Served) -> None:
    submit_hanging_run(served.api_url, served.folder, lambda: served.output)
    assert (
        len(processes_with(str(served.folder))) >= 6
    )  # serve, two supervisors, server, worker, run, child …
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(300) == 0, served.output
    assert "Traceback" not in served.output and "Warning" not in served.output, served.output
    wait_for(lambda: not processes_with(str(served.folder)), 5)
    assert (served.folder / "checkpoint").exists()
    assert not answers(served.api_url) and not (served.home / "jora-serve.url").exists()


def test_second_one_and_taken_port_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.orchestration.serve import serve

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(home))
    said: list[str] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"^port {port} cannot be used .*--port$"):
            serve(toy_config(tmp_path), port, said.append)
    with (home / "jora-serve.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=rf"runs already \(process {os.getpid()}\)"):
            serve(toy_config(tmp_path), port, said.append)
    assert said == [] and not (home / "jora-serve.url").exists()


def test_kill_9_leaves_no_orphan(tmp_path: Path, prefect_url: str) -> None:
    """A second one, on a server that runs already: that one is used, and stays."""
    environment = environment_of(tmp_path, tmp_path) | {"PREFECT_API_URL": prefect_url}
    process = start(tmp_path, environment)
    try:
        assert f"using the Prefect server at {prefect_url}" in (tmp_path / "output.txt").read_text()
        submit_hanging_run(prefect_url, tmp_path, (tmp_path / "output.txt").read_text)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not processes_with(str(tmp_path)), 10)
    assert answers(prefect_url)


def submit_hanging_run(api_url: str, folder: Path, explain: Callable[[], str]) -> UUID:
    """Submit a run, wait until it hangs in a child process of its third stage; return its id."""
    from prefect.client.orchestration import SyncPrefectClient

    # A corpus that no earlier run has read, so that the stage has work.
    (folder / "corpus.txt").write_text(f"corpus {uuid4()}\n")
    (folder / "finetune-structure").write_text("hang")
    with SyncPrefectClient(api_url) as client:
        chosen = client.read_deployment_by_name("raft-pipeline/raft-pipeline")
        made = client.create_flow_run_from_deployment(chosen.id)
    wait_for((folder / "pids").exists, 600, explain)
    return made.id


def test_bad_schedule_is_refused(tmp_path: Path) -> None:
    from flows.orchestration.serve import serve

    with pytest.raises(InputError, match="expected five fields"):
        serve(toy_config(tmp_path, schedule={"cron": "every night"}))
    with pytest.raises(InputError, match="IANA name"):
        serve(toy_config(tmp_path, schedule={"cron": "0 2 * * *", "timezone": "Nowhere/Town"}))
