"""Run records, the list of runs, pins, and what a clean-up removes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.commands.operations.housekeeping import runs as list_runs
from flows.engine.artifact_store import Store
from flows.engine.plan import make_plan
from flows.engine.run_records import read_records, recorded_run, started_by
from flows.engine.run_stage import run_stages
from flows.housekeeping.collect import choose, collect, parse_age
from flows.housekeeping.stored_runs import StoreContents, find_run, main_measures, pin, read_contents, unpin
from jora_core.base.errors import InputError
from tests.flows.conftest import Project

ALL = ("build-context", "convert-model", "finetune-structure", "finetune-task", "evaluate", "export")


def run_all(project: Project, *overrides: str) -> None:
    config = project.config(*overrides)
    run_stages(ALL, config, project.store, project.registry)


def three_runs(project: Project) -> StoreContents:
    """Three runs whose last phase differs, and one run that computed nothing."""
    for rate in ("1e-4", "2e-4", "3e-4", "3e-4"):
        run_all(project, f"phases.1.optim.learning_rate={rate}")
    return read_contents(project.store)


def test_runs_say_what_they_computed(project: Project) -> None:
    contents = three_runs(project)
    assert [run.computed for run in contents.runs] == [(), ALL[3:], ALL[3:], ALL]
    assert [run.record.result for run in contents.runs] == ["completed"] * 4
    assert contents.runs[0].cached == ALL and contents.runs[0].artifacts == contents.runs[1].artifacts
    assert {run.record.project for run in contents.runs} == {"pipeline"}
    count, size = contents.sizes_by_stage()["export"]
    assert count == 3 and size > 0


def test_clean_up_keeps_what_kept_runs_need(project: Project) -> None:
    contents = three_runs(project)
    removal = choose(contents, keep=1)
    # The run without work has the artifacts of the third, so both are kept, and count once.
    assert removal.kept == contents.runs[:2]
    assert {stage for stage, _ in removal.artifacts} == set(ALL[3:]) and len(removal.artifacts) == 6
    pin(project.store, contents.runs[-1].record.id)
    removal = collect(project.store, keep=1)
    assert len(removal.artifacts) == 3, "the pinned run keeps its own"
    after = read_contents(project.store)
    assert len(after.runs) == 3 and after.runs[-1].pinned
    for rate in ("1e-4", "3e-4"):
        config = project.config(f"phases.1.optim.learning_rate={rate}")
        assert all(line.action == "cached" for line in make_plan(config, project.store, project.registry))
    assert unpin(project.store, contents.runs[-1].record.id)
    assert len(collect(project.store, keep=1).artifacts) == 3
    assert not list((project.folder / "runs" / ".tmp").iterdir())


def test_clean_up_keeps_adapters_that_a_kept_evaluation_has_scored(project: Project) -> None:
    """By key and by a path into the store; the training's own upstream stays with it."""
    run_all(project)
    run_all(project, "phases.1.optim.learning_rate=2e-4")
    oldest, newer = (run.record.keys["finetune-task"] for run in reversed(read_contents(project.store).runs))
    before = project.store.path("finetune-task", newer).relative_to(project.folder)
    systems = f"evaluate.systems=[both_phases, {oldest[:12]}, before=./{before}]"
    run_all(project, "phases.1.optim.learning_rate=3e-4", systems)
    removal = collect(project.store, keep=1)
    assert {stage for stage, _ in removal.artifacts} == {"evaluate", "export"}
    assert len(removal.artifacts) == 4
    left = [key for stage, key in read_contents(project.store).artifacts if stage == "finetune-task"]
    assert len(left) == 3 and {oldest, newer} < set(left)
    # Again from an index that was written before, and not from the manifests.
    assert not collect(project.store, keep=1).artifacts


def test_clean_up_keeps_the_export_that_gates_compare_with(project: Project) -> None:
    run_all(project)
    first = read_contents(project.store).runs[0]
    for rate in ("2e-4", "3e-4"):
        # As runs whose gates failed: all but the export.
        config = project.config(f"phases.1.optim.learning_rate={rate}")
        run_stages(ALL[:-1], config, project.store, project.registry)
    removal = collect(project.store, keep=1)
    assert {stage for stage, _ in removal.artifacts} == {"finetune-task", "evaluate"}
    assert [run.record.id for run in removal.kept][1:] == [first.record.id]
    assert len(removal.kept) == 2
    collect(project.store, keep=0)
    assert not read_contents(project.store).artifacts, "0 keeps none"


def test_age_and_number_together(project: Project) -> None:
    contents = three_runs(project)
    later = datetime.now(UTC) + timedelta(days=40)
    assert not choose(contents, older_than=timedelta(days=30)).artifacts
    assert len(choose(contents, older_than=timedelta(days=30), now=later).artifacts) == len(
        contents.artifacts
    )
    both = choose(contents, keep=2, older_than=timedelta(days=30), now=later)
    assert len(both.artifacts) == 3 and len(both.kept) == 3
    assert not choose(contents).artifacts, "five runs are kept by default"
    assert parse_age("1.5h") == timedelta(minutes=90)
    for text in ("", "30", "d", "-1d", "9" * 400 + "d"):
        with pytest.raises(InputError):
            parse_age(text)


def test_clean_up_refuses_during_a_run(project: Project) -> None:
    run_all(project)
    with recorded_run(project.store, project.config(), {}) as run:
        (other,) = [one for one in read_records(project.store) if one.result == "running"]
        assert other.id == run.record.id
        with pytest.raises(InputError, match=rf"a run is in progress \({run.record.id}\); try again"):
            collect(project.store, keep=0)
    assert not [one for one in read_records(project.store) if one.result == "running"]
    collect(project.store, keep=0)
    assert not read_contents(project.store).artifacts


def test_killed_and_failed_runs_are_named(project: Project) -> None:
    project.config()
    code = (
        "import os, signal\n"
        "from flows.configuration.load import load_config\n"
        "from flows.engine.artifact_store import Store\n"
        "from flows.engine.run_records import recorded_run\n"
        "os.makedirs('runs')\n"
        "with recorded_run(Store('runs'), load_config('pipeline.yaml'), {}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False)
    with pytest.raises(RuntimeError), recorded_run(project.store, project.config(), {}):
        raise RuntimeError("out of luck\nand more")
    found = {record.result: record.message for record in read_records(project.store)}
    assert found == {"killed": "", "failed": "out of luck"}
    # A broken file among the records is left out.
    (project.folder / "runs" / ".runs" / "x.json").write_text("{")
    assert len(read_records(project.store)) == 2


def test_the_list_says_what_a_reader_needs(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jora", "run", "pipeline.yaml", "--set", "seed=0"])
    run_all(project)
    with started_by("schedule, flow run lucky-owl"):
        run_all(project, "seed=1")
    scores = {"systems": {"base": {"f1": {"value": 0.1}}, "phase1": {"reply@1": {"value": 0.5}}}}
    newest, oldest = read_contents(project.store).runs
    evaluation = project.store.path("evaluate", oldest.record.keys["evaluate"])
    (evaluation / "metrics.json").write_text(json.dumps(scores))
    assert oldest.record.started_by == "jora run pipeline.yaml --set seed=0"
    assert newest.record.started_by == "schedule, flow run lucky-owl"
    assert oldest.record.root == str(project.folder)
    # The stand-ins' evaluation is no JSON.
    assert main_measures(project.store, newest) == {}
    assert main_measures(project.store, oldest) == {"reply@1": {"value": 0.5}}
    list_runs(project.config_file, keys=True)
    said = " ".join(capsys.readouterr().out.split())
    # A cell may be broken between words.
    assert all(word in said.split() for word in ("reply@1", "0.500", "schedule,", "lucky-owl"))
    assert all(key in said for key in newest.record.keys.values())
    list_runs(project.config_file, as_json=True)
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert second["measures"] == {"reply@1": {"value": 0.5}} and first["measures"] == {}
    assert first["started_by"].startswith("schedule") and set(first["keys"]) == set(ALL)


def test_artifacts_without_a_record_are_runs(project: Project) -> None:
    run_all(project)
    for path in (project.folder / "runs" / ".runs").iterdir():
        path.unlink()
    (run,) = read_contents(project.store).runs
    assert {stage for stage, _ in run.artifacts} == set(ALL)
    assert find_run(read_contents(project.store), run.record.id[:8]).record.id == run.record.id
    pin(project.store, run.record.id)
    assert not collect(project.store, keep=0).artifacts
    with pytest.raises(InputError, match="there is no run 'x'"):
        find_run(read_contents(project.store), "x")


def test_plan_compares_within_a_project(project: Project) -> None:
    run_all(project)
    config = project.config("seed=1")
    other = config.model_copy(update={"project": "other"})
    own, strange = (make_plan(one, project.store, project.registry)[0].reason for one in (config, other))
    assert own == "config changed: context.seed 0 → 1"
    assert strange == "no artifact"
    manifest = json.loads((project.artifact("export") / "manifest.json").read_text())
    assert manifest["project"] == "pipeline"


def test_a_store_that_cannot_be_written_records_nothing(tmp_path: Path, project: Project) -> None:
    file = tmp_path / "plain"
    file.write_text("")
    store = Store(tmp_path / "new")
    store.root = file / "below"
    with recorded_run(store, project.config(), {}) as run:
        run.begin()
    assert replace(run.record, ended="").result == "completed"
