"""The plan says what the run then does, over many kinds of change, and names the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from flows.errors import InputError, StageFailed
from flows.plan import PlannedStage, make_plan
from flows.runner import run_pipeline
from tests.flows.conftest import Project

ALL = ["build-context", "convert-model", "finetune-structure", "finetune-task", "evaluate", "export"]
TRAINING_ON = ALL[2:]


@dataclass(frozen=True)
class Change:
    """What happens between two runs, what must run then, and words that the plan must say about one stage."""

    name: str
    apply: Callable[[Project], Any]
    runs: list[str]
    stage: str = ""
    reason: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def _append(name: str, text: str) -> Callable[[Project], Any]:
    def apply(project: Project) -> None:
        with (project.folder / name).open("a") as file:
            file.write(text)

    return apply


def _flip(stage: str, name: str) -> Callable[[Project], Any]:
    """Flip one bit of an artifact's file and give the file its old times back."""

    def apply(project: Project) -> None:
        path = project.artifact(stage) / name
        before = path.stat()
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return apply


def _delete(stage: str, name: str = "") -> Callable[[Project], Any]:
    def apply(project: Project) -> None:
        path = project.artifact(stage) / name if name else project.folder / "runs" / stage
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def _set(*keys: Any, value: Any) -> Callable[[Project], Any]:
    def apply(project: Project) -> None:
        target: Any = project.raw
        for key in keys[:-1]:
            target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
        target[keys[-1]] = value

    return apply


def _touch_all(project: Project) -> None:
    for path in project.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))


def _move_corpus(project: Project) -> None:
    (project.folder / "elsewhere").mkdir()
    (project.folder / "threads.ndjson").rename(project.folder / "elsewhere" / "threads.ndjson")
    project.raw["context"]["threads"]["source"] = "elsewhere/threads.ndjson"


def _leave_killed_run(project: Project) -> None:
    left = project.folder / "runs" / ".tmp" / f"evaluate-{'0' * 64}"
    left.mkdir(parents=True)
    (left / "half").write_text("half an artifact")


CHANGES = [
    Change("nothing", lambda project: None, []),
    Change("all times touched", _touch_all, []),
    Change(
        "a thread edited",
        _append("threads.ndjson", "\n"),
        ["build-context", *TRAINING_ON],
        "build-context",
        "input changed: threads.ndjson",
    ),
    Change(
        "a table's cell edited",
        _append("tables/csv/200-csv/1.csv", '"Bob","2"\n'),
        ["build-context", *TRAINING_ON],
        "build-context",
        "input changed: tables/csv/200-csv/1.csv",
    ),
    Change(
        "a table added",
        lambda p: (p.folder / "tables/csv/200-csv/2.csv").write_text('"a"\n"b"\n'),
        ["build-context", *TRAINING_ON],
        "build-context",
        "input changed: tables/csv/200-csv/2.csv",
    ),
    Change(
        "a byte of the base model",
        _append("model/model.safetensors", "x"),
        ALL[1:],
        "convert-model",
        "input changed: model/model.safetensors",
    ),
    Change(
        "a file of the base model gone",
        lambda p: (p.folder / "model/tokenizer.json").unlink(),
        ALL[1:],
        "convert-model",
        "input changed: model/tokenizer.json is gone",
    ),
    Change(
        "the second phase's learning rate",
        _set("phases", 1, "optim", "learning_rate", value=2e-4),
        ALL[3:],
        "finetune-task",
        "config changed: phases.1.optim.learning_rate 0.0001 → 0.0002",
    ),
    Change(
        "the first phase's steps",
        _set("phases", 0, "max_steps", value=3),
        TRAINING_ON,
        "finetune-task",
        "upstream finetune-structure runs",
    ),
    Change(
        "the seed",
        _set("seed", value=1),
        ["build-context", *TRAINING_ON],
        "finetune-structure",
        "config changed: seed 0 → 1; upstream build-context runs",
    ),
    Change(
        "retrieval's setting",
        _set("context", "threads", "n_contexts", value=5),
        ["build-context", *TRAINING_ON],
        "build-context",
        "config changed: context.threads.n_contexts 10 → 5",
    ),
    Change(
        "the evaluation's size",
        _set("evaluate", "max_records", value=7),
        ["evaluate", "export"],
        "evaluate",
        "config changed: evaluate.max_records None → 7",
    ),
    Change(
        "the exported type",
        _set("export", "dtype", value="bfloat16"),
        ["export"],
        "export",
        "config changed: export.dtype None → bfloat16",
    ),
    Change("how often a checkpoint is written", _set("phases", 0, "checkpoint_every", value=7), []),
    Change("retries and schedule", _set("retries", "max_retries", value=9), []),
    Change("the corpus moved", _move_corpus, []),
    Change(
        "code of one stage",
        _append("code/flows/stages/export.py", "\n# changed\n"),
        ["export"],
        "export",
        "code changed: flows/stages/export.py",
    ),
    Change(
        "code of retrieval",
        _append("code/retrieval/bm25.py", "\n# changed\n"),
        ["build-context", *TRAINING_ON],
        "build-context",
        "code changed: retrieval/bm25.py",
    ),
    Change(
        "code of the training",
        _append("code/jora_core/step.py", "\n# changed\n"),
        TRAINING_ON,
        "finetune-structure",
        "code changed: jora_core/step.py",
    ),
    Change(
        "a bit of the records",
        _flip("build-context", "records.parquet"),
        ["build-context"],
        "build-context",
        "artifact damaged: records.parquet",
    ),
    Change(
        "a bit of a log",
        _flip("evaluate", "result.json"),
        ["evaluate"],
        "evaluate",
        "artifact damaged: result.json",
    ),
    Change(
        "a bit of a manifest",
        _flip("finetune-task", "manifest.json"),
        ["finetune-task"],
        "finetune-task",
        "artifact damaged: manifest.json",
    ),
    Change(
        "an adapter deleted",
        _delete("finetune-structure", "adapter_model.safetensors"),
        ["finetune-structure"],
        "finetune-structure",
        "artifact damaged: adapter_model.safetensors",
    ),
    Change(
        "a file put into an artifact",
        lambda p: (p.artifact("export") / "model/extra.json").write_text("{}"),
        ["export"],
        "export",
        "artifact damaged: model/extra.json",
    ),
    Change(
        "a whole stage deleted", _delete("convert-model"), ["convert-model"], "convert-model", "no artifact"
    ),
    Change("what a killed run left", _leave_killed_run, []),
    Change("everything forced", lambda p: None, ALL, "evaluate", "forced", {"force": True}),
    Change(
        "forced from a stage",
        lambda p: None,
        ALL[3:],
        "finetune-task",
        "forced",
        {"force": True, "start": "finetune-task"},
    ),
    Change(
        "one stage forced",
        lambda p: None,
        ["convert-model"],
        "convert-model",
        "forced",
        {"force": True, "only": "convert-model"},
    ),
    Change(
        "one stage of a changed seed",
        _set("evaluate", "max_records", value=3),
        ["evaluate"],
        "evaluate",
        "config changed",
        {"only": "evaluate"},
    ),
]


def _plan(project: Project, **options: Any) -> dict[str, PlannedStage]:
    return {
        line.name: line
        for line in make_plan(project.config(), project.store, **options, registry=project.registry)
    }


def _run(project: Project, **options: Any) -> dict[str, bool]:
    done = run_pipeline(project.config(), project.store, **options, registry=project.registry)
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
    leftovers = [path for path in (project.folder / "runs" / ".tmp").iterdir()]
    assert leftovers == []


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


def test_selection_on_a_damaged_artifact(project: Project) -> None:
    _run(project)
    _flip("finetune-task", "adapter_model.safetensors")(project)
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
        _append("threads.ndjson", "\n")(project)
        return metrics

    project.registry["build-context"] = replace(stage, run=run)
    with pytest.raises(StageFailed, match=r"threads.ndjson changed while build-context was reading it"):
        _run(project, only="build-context")
    assert not (project.folder / "runs" / "build-context").exists()


def test_missing_input(project: Project) -> None:
    (project.folder / "threads.ndjson").unlink()
    with pytest.raises(ValueError, match="threads.ndjson"):
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
