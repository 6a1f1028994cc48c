"""The plan says what the run then does, over many kinds of change, and names the reason."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.engine.errors import StageFailed
from flows.engine.plan import PlannedStage, make_plan, select
from flows.engine.run_stage import run_stages
from jora_core.base.errors import InputError
from tests.flows.changes import ALL, CHANGES, Change, append, flip
from tests.flows.conftest import Project


def _plan(project: Project, **options: Any) -> dict[str, PlannedStage]:
    return {
        line.name: line for line in make_plan(project.config(), project.store, project.registry, **options)
    }


def _run(project: Project, **options: Any) -> dict[str, bool]:
    config, force = project.config(), options.pop("force", False)
    names = select(config, project.registry, **options)
    done = run_stages(names, config, project.store, project.registry, force=force)
    return {reference.stage: reference.cached for reference in done}


def test_first_run_does_everything(project: Project) -> None:
    plan = _plan(project)
    assert [(line.name, line.action) for line in plan.values()] == [(name, "run") for name in ALL]
    assert plan["build-context"].reason == "no artifact"
    assert not (project.folder / "runs").exists(), "planning writes nothing"
    assert _run(project) == dict.fromkeys(ALL, False)
    for name, line in plan.items():
        assert project.artifact(name).name == line.key


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name.replace(" ", "-"))
def test_plan_is_what_the_run_does(project: Project, change: Change) -> None:
    _run(project)
    change.apply(project)
    project.runs.clear()

    plan = _plan(project, **change.options)
    cached = _run(project, **change.options)

    assert {name: line.action == "cached" for name, line in plan.items()} == cached
    assert project.runs == change.runs
    if change.stage:
        assert change.reason in plan[change.stage].reason
    options = {name: value for name, value in change.options.items() if name != "force"}
    assert {line.action for line in _plan(project, **options).values()} == {"cached"}
    assert list((project.folder / "runs" / ".tmp").iterdir()) == []


def test_going_back_costs_nothing(project: Project) -> None:
    _run(project)
    project.raw["seed"] = 1
    _run(project)
    project.raw["seed"] = 0
    assert _run(project) == dict.fromkeys(ALL, True)


def test_stage_that_does_not_reproduce_its_files_is_noticed(project: Project) -> None:
    """The plan believes that stages are deterministic; the run does not."""
    _run(project)
    stage = project.registry["finetune-task"]

    def other_bits(context: Any) -> dict[str, Any]:
        metrics = stage.run(context)
        (context.output_dir / "adapter_model.safetensors").write_text("another machine's last bits")
        return metrics

    project.registry["finetune-task"] = replace(stage, run=other_bits)
    project.runs.clear()
    _run(project, force=True, start="finetune-task")
    _run(project)
    assert project.runs == ["finetune-task", "evaluate", "export"]

    project.runs.clear()
    _run(project, force=True, only="finetune-task")
    assert {line.action for line in _plan(project).values()} == {"cached"}, "the same other bits"


def test_other_files_upstream_are_a_reason(project: Project) -> None:
    _run(project)
    stage = project.registry["convert-model"]

    def other_bits(context: Any) -> dict[str, Any]:
        (context.output_dir / "model.json").write_text("other")
        return {}

    project.registry["convert-model"] = replace(stage, run=other_bits)
    _run(project, force=True, only="convert-model")
    plan = _plan(project)
    assert plan["finetune-structure"].action == "run"
    assert (
        plan["finetune-structure"].reason == "upstream convert-model made other files than this was made from"
    )
    assert {name: line.action == "cached" for name, line in plan.items()} == _run(project)


@pytest.mark.parametrize("options", [{"only": "evaluate"}, {"start": "finetune-task"}])
def test_selection_without_what_it_reads(project: Project, options: dict[str, str]) -> None:
    for attempt in (_plan, _run):
        with pytest.raises(
            InputError, match=r"reads the artifact of build-context, which does not exist .*--from"
        ):
            attempt(project, **options)


def test_selection_after_a_run_with_changes(project: Project) -> None:
    """The artifacts of a run with `--set` are others: the settings of the last one are named."""
    project.raw["phases"][1]["max_steps"] = 2
    _run(project)
    project.raw["phases"][1]["max_steps"] = 7
    for attempt in (_plan, _run):
        with pytest.raises(
            InputError,
            match=r"finetune-task, which does not exist for this configuration; the last one was made with "
            r"other settings \(phases\.finetune-task\.max_steps 2 → 7\): give the changes of its run ",
        ):
            attempt(project, only="evaluate")


def test_selection_on_a_damaged_artifact(project: Project) -> None:
    _run(project)
    flip("finetune-task", "adapter_model.safetensors")(project)
    project.raw["evaluate"] = {"max_records": 5}
    for attempt in (_plan, _run):
        with pytest.raises(
            InputError, match=r"finetune-task, which is damaged \(adapter_model.safetensors\)"
        ):
            attempt(project, only="evaluate")


def test_unknown_and_contradicting_selection(project: Project) -> None:
    with pytest.raises(
        InputError, match="no stage evalate in this configuration; its stages are build-context"
    ):
        _plan(project, only="evalate")
    with pytest.raises(InputError, match="--only and --from exclude each other"):
        _plan(project, only="evaluate", start="evaluate")


def test_one_phase_alone(project: Project) -> None:
    del project.raw["phases"][0]
    assert list(_run(project)) == [name for name in ALL if name != "finetune-structure"]
    with pytest.raises(InputError, match="no stage finetune-structure in this configuration"):
        _plan(project, only="finetune-structure")


def test_input_that_changes_while_it_is_read(project: Project) -> None:
    stage = project.registry["build-context"]

    def run(context: Any) -> dict[str, Any]:
        metrics = stage.run(context)
        append("threads.ndjson", "\n")(project)
        return metrics

    project.registry["build-context"] = replace(stage, run=run)
    with pytest.raises(StageFailed, match=r"threads.ndjson changed while build-context was reading it"):
        _run(project, only="build-context")
    assert not (project.folder / "runs" / "build-context").exists()


def test_missing_input(project: Project) -> None:
    (project.folder / "threads.ndjson").unlink()
    with pytest.raises(ValueError, match=r"threads\.ndjson"):
        _plan(project)


def test_missing_model(project: Project) -> None:
    shutil.rmtree(project.folder / "model")
    with pytest.raises(InputError, match=r"model.path: there is no folder .*model; give a model folder"):
        _plan(project)


def test_paths_of_this_machine_are_in_no_key(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = {name: line.key for name, line in _plan(project).items()}
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(project.folder, other, dirs_exist_ok=True)
    moved = Project(other, project.raw, project.registry)
    assert {name: line.key for name, line in _plan(moved).items()} == here
    assert isinstance(other, Path)


def test_reasons_compare_with_the_nearest_artifact_of_the_project(project: Project) -> None:
    """Not with the last one, and never with another project's."""
    _run(project)
    project.raw["evaluate"] = {"max_records": 7, "bootstrap_samples": 20, "max_new_tokens": 5}
    _run(project)
    project.raw["evaluate"] = {"bootstrap_samples": 500}
    reason = _plan(project)["evaluate"].reason
    assert reason == "config changed: evaluate.bootstrap_samples 2000 → 500"
    project.raw["project"] = "another"
    assert _plan(project)["evaluate"].reason == "no artifact"


def test_many_changes_are_counted_by_kind(project: Project) -> None:
    _run(project)
    for number in range(2, 40):
        (project.folder / "tables/csv/200-csv" / f"{number}.csv").write_text('"a"\n"b"\n')
    project.raw["context"]["threads"] |= {"n_contexts": 5, "window": 30, "block": 7, "rrf_k": 9}
    reason = _plan(project)["build-context"].reason
    settings, inputs = reason.split("; ")
    assert settings.startswith("config changed: context.threads.block ") and settings.endswith(
        "and 2 more settings"
    )
    assert inputs.startswith("input changed: ") and inputs.endswith("and 36 more files")
