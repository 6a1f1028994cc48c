"""The flow around the stages: order, retries, one cache with the store, kills, and stages alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.orchestration import pipeline_flow, run_pipeline
from jora_core.base.errors import InputError
from tests.flows.toy_pipeline import TOY_STAGES, log, toy_config, use_toy_stages

ROOT = Path(__file__).resolve().parents[3]
NAMES = list(TOY_STAGES)

pytest_plugins = ["tests.flows.prefect_session"]
pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    use_toy_stages(monkeypatch.setattr)


def silent(_: str) -> None:
    pass


def actions(outcome: run_pipeline.Outcome) -> list[str]:
    return ["cached" if item.cached else "run" for item in outcome.references]


def task_runs(flow_name: str = "raft-pipeline") -> dict[str, str]:
    """Name of each task run of the newest flow run, and its state's name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=[flow_name]))
        newest = client.read_flow_runs(flow_filter=named, sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[newest.id]))
        deadline = time.monotonic() + 10  # task runs are recorded from events, a moment later
        while True:
            found = {
                item.name: item.state_name or "" for item in client.read_task_runs(flow_run_filter=chosen)
            }
            if time.monotonic() > deadline or (
                found and set(found.values()) <= {"Completed", "Cached", "Failed"}
            ):
                return found
            time.sleep(0.2)


def test_all_stages_then_none(tmp_path: Path, prefect_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path)
    first = run_pipeline.run(config, say=silent)
    assert [item.stage for item in first.references] == NAMES
    assert actions(first) == ["run"] * 4 and sorted(log(config)) == sorted(NAMES)
    assert all(Path(item.path, "out.txt").is_file() for item in first.references)
    assert {name.split()[0] for name in task_runs()} == set(NAMES)

    def no_server(_: object) -> None:
        raise AssertionError("a run with nothing to do started a server")

    said: list[str] = []
    monkeypatch.setattr(run_pipeline, "prefect_api", no_server)
    second = run_pipeline.run(config, say=said.append)
    assert actions(second) == ["cached"] * 4 and len(log(config)) == 4
    assert [item.key for item in second.references] == [item.key for item in first.references]
    assert len(said) == 1 and said[0].startswith("nothing to run: 4 stages verified")


def test_prefect_and_store_never_disagree(tmp_path: Path, prefect_url: str) -> None:
    config = toy_config(tmp_path)
    first = run_pipeline.run(config, say=silent)
    context, _, tuned, scored = (Path(item.path) for item in first.references)

    # Prefect remembers all four, and is not believed where an artifact is damaged or gone.
    (tuned / "out.txt").write_text("flipped\n")
    shutil.rmtree(scored)
    assert actions(run_pipeline.run(config, say=silent)) == ["cached", "cached", "run", "run"]
    assert sorted(set(task_runs().values())) == ["Cached", "Completed"]
    assert log(config)[4:] == ["finetune-structure", "evaluate"]

    # Prefect forgot: the store knows.
    remembered = Path(config.store) / ".prefect"
    assert {path.name.rpartition("-")[0] for path in remembered.iterdir()} == set(NAMES)
    shutil.rmtree(remembered)
    shutil.rmtree(scored)
    assert actions(run_pipeline.run(config, say=silent)) == ["cached", "cached", "cached", "run"]

    # The store moved: the references follow it.
    moved = toy_config(tmp_path, store=str(tmp_path / "elsewhere"))
    Path(config.store).rename(moved.store)
    (tmp_path / "elsewhere" / context.relative_to(config.store) / "out.txt").unlink()
    outcome = run_pipeline.run(moved, say=silent)
    assert actions(outcome) == ["run", "cached", "cached", "cached"]
    assert all(Path(item.path).is_relative_to(moved.store) for item in outcome.references)


def test_only_small_json_is_remembered(tmp_path: Path, prefect_url: str) -> None:
    config = toy_config(tmp_path)
    (tmp_path / "evaluate").write_text("fail")
    run_pipeline.run(config, say=silent)
    remembered = sorted((Path(config.store) / ".prefect").iterdir())
    assert len(remembered) >= 4
    for path in remembered:
        assert path.stat().st_size < 2_000 and isinstance(json.loads(path.read_bytes()), dict)


def test_force_and_selection(tmp_path: Path, prefect_url: str) -> None:
    config = toy_config(tmp_path)
    run_pipeline.run(config, say=silent)
    assert actions(run_pipeline.run(config, start="finetune-structure", force=True, say=silent)) == [
        "run",
        "run",
    ]
    (forced,) = run_pipeline.run(config, only="convert-model", force=True, say=silent).references
    assert (forced.stage, forced.cached, forced.reason) == ("convert-model", False, "forced")
    assert len(log(config)) == 7


def test_failures_are_retried_but_not_wrong_input(
    tmp_path: Path, prefect_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path)
    (tmp_path / "finetune-structure").write_text("fail")
    run_pipeline.run(config, say=silent)
    assert log(config).count("finetune-structure") == 2 and log(config)[-1] == "evaluate"

    (tmp_path / "corpus.txt").write_text("another corpus\n")
    (tmp_path / "build-context").write_text("refuse")
    capfd.readouterr()
    with pytest.raises(InputError, match=r"corpus\.txt, line 1: expected better"):
        run_pipeline.run(config, say=silent)
    assert log(config).count("build-context") == 2
    assert "Traceback" not in "".join(capfd.readouterr())


def test_roots_run_side_by_side_and_both_end(tmp_path: Path, prefect_url: str) -> None:
    config = toy_config(tmp_path)
    (tmp_path / "build-context").write_text("meet convert-model")
    (tmp_path / "convert-model").write_text("meet build-context")
    assert actions(run_pipeline.run(config, say=silent)) == ["run"] * 4

    # One of them fails at once; what the other one made is kept.
    other = toy_config(tmp_path / "other")
    (tmp_path / "other" / "build-context").write_text("refuse")
    (tmp_path / "other" / "convert-model").write_text("meet build-context")
    with pytest.raises(InputError):
        run_pipeline.run(other, say=silent)
    (tmp_path / "other" / "build-context").unlink()
    assert actions(run_pipeline.run(other, say=silent)) == ["run", "cached", "run", "run"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_ended_in_the_middle_then_run_again(tmp_path: Path, prefect_url: str, number: signal.Signals) -> None:
    config = toy_config(tmp_path)
    (tmp_path / "finetune-structure").write_text("hang")
    command = [sys.executable, "-m", "tests.flows.toy_pipeline", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 250
        while not (tmp_path / "pids").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        children = [int(word) for word in (tmp_path / "pids").read_text().split()]
        process.send_signal(number)
        assert process.wait(30) != 0
    finally:
        process.kill()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in children):
        assert time.monotonic() < deadline, "a child outlived the run"
        time.sleep(0.05)
    assert (tmp_path / "checkpoint").exists() == (number != signal.SIGKILL)
    (tmp_path / "finetune-structure").unlink()
    assert actions(run_pipeline.run(config, say=silent)) == ["cached", "cached", "run", "run"]
    assert log(config).count("finetune-structure") == 2


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_one_stage_alone(tmp_path: Path, prefect_url: str) -> None:
    config = toy_config(tmp_path)
    evaluate = pipeline_flow.stage_flow("evaluate")
    with pytest.raises(InputError, match="run `jora run --from finetune-structure`"):
        evaluate(config=config)
    run_pipeline.run(config, say=silent)
    found: dict[str, Any] = evaluate(config=config)
    assert found["stage"] == "evaluate" and found["cached"]
    assert evaluate(force=True, config=config)["cached"] is False
    # By this name a worker imports it.
    assert pipeline_flow.evaluate is evaluate
    assert [pipeline_flow.stage_flow(name).name for name in NAMES] == NAMES
    with pytest.raises(AttributeError, match="no attribute 'evaluation'"):
        _ = pipeline_flow.evaluation


def test_input_changed_on_the_way(tmp_path: Path, prefect_url: str) -> None:
    config = toy_config(tmp_path)
    (tmp_path / "convert-model").write_text("edit-corpus")
    (tmp_path / "build-context").write_text("meet convert-model")
    with pytest.raises(RuntimeError, match="changed while"):
        run_pipeline.run(config, say=silent)
    # It was made from the edited corpus, under that key: nothing of it is lost or mixed up.
    assert actions(run_pipeline.run(config, say=silent)) == ["cached", "cached", "run", "run"]


def test_nothing_heavy_in_this_process(tmp_path: Path, prefect_url: str) -> None:
    command = [sys.executable, "-m", "tests.flows.toy_pipeline", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr
