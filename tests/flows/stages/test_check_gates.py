"""Gates: verdicts from the values of single records, and an export that obeys them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows.commands.print_pipeline import LINK_METRICS, METRICS
from flows.configuration.requirements import require
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.errors import GateFailed
from flows.engine.run_records import recorded_run
from flows.engine.stage import StageContext
from flows.report.facts import RunFacts
from flows.report.sections import METRIC_NAMES, OTHER_METRICS
from flows.report.sections import gates as gate_blocks
from flows.report.thread_sections import CONVERSATION_NAMES, LINK_NAMES
from flows.stages import STAGES, check_gates
from jora_core.base.errors import InputError
from retrieval.settings.task_registry import TASKS
from tests.flows.conftest import Project
from tests.flows.orchestration.serving.small_project import ROOT, write_project

RECORDS = 60
CONTEXTS = 20


def values(folder: Path, **rights: int) -> Path:
    """Write the values of one measure: each system is right on its first so many records."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "task": "threads",
            "id": f"r{index}",
            "context_id": f"c{index % CONTEXTS}",
            "system": system,
            "measure": "reply@1",
            "value": float(index < right),
        }
        for system, right in rights.items()
        for index in range(RECORDS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / check_gates.RECORD_VALUES)
    return folder


def context(
    project: Project, config: PipelineConfig, evaluation: Path, key: str, read: list[Any] | None = None
) -> StageContext:
    output = project.folder / "out"
    output.mkdir(exist_ok=True)
    return StageContext(
        config=config,
        key="k" * 64,
        output_dir=output,
        work_dir=project.folder / "work",
        cache_dir=project.folder / "cache",
        upstream={"evaluate": evaluation},
        manifests={"evaluate": {"key": key}},
        note_read=lambda *name: (read if read is not None else []).append(name),
    )


def verdict(
    project: Project, gate: str, evaluation: Path, key: str = "e" * 64, read: list[Any] | None = None
) -> dict[str, Any]:
    config = project.config(f"gates=[{gate}]")
    check_gates.CHECK_GATES.run(context(project, config, evaluation, key, read))
    (found,) = json.loads((project.folder / "out" / check_gates.VERDICTS).read_text())["verdicts"]
    return found


@pytest.mark.parametrize(
    ("condition", "passed", "words"),
    [
        ("at_least: 0.5", True, "threads.reply@1 of both_phases is 0.500, at least 0.5"),
        ("at_least: 0.51", False, "is 0.500, below 0.51"),
        ("not_worse_than: base", True, "better than base: difference +0.333"),
        ("better_than: base", True, "better than base"),
        ("not_worse_than: bm25", False, "worse than bm25: difference -0.333"),
        ("{}: phase1", True, "not separable from phase1: difference -0.017"),
        ("not_worse_than: bm25, margin: 0.5", True, "0.5 allowed"),
        ("at_least: 0.1, system: base", True, "of base is 0.167"),
        ("not_worse_than: previous", True, "no earlier exported run to compare"),
    ],
)
def test_verdicts(project: Project, tmp_path: Path, condition: str, passed: bool, words: str) -> None:
    own = values(tmp_path / "own", base=10, phase1=31, both_phases=30, bm25=50)
    for field in ("not_worse_than",) if "{}" not in condition else ("not_worse_than", "better_than"):
        gate = f"{{metric: threads.reply@1, {condition.format(field)}}}"
        found = verdict(project, gate, own)
        # A difference that is not separable is not worse, and not better.
        assert found["passed"] is (passed and field == "not_worse_than"), found
        assert words in found["text"]


def test_the_interval_is_paired_and_by_context(project: Project, tmp_path: Path) -> None:
    """Two systems that differ in one record of 60 are near, however wide their own intervals."""
    own = values(tmp_path / "own", base=29, both_phases=30)
    found = verdict(project, "{metric: threads.reply@1, not_worse_than: base}", own)
    assert found["difference"] == pytest.approx(1 / RECORDS, abs=1e-6)
    assert -0.11 < found["low"] < 0 and found["high"] < 0.2
    alone = 2 * 1.96 * (0.5 * 0.5 / RECORDS) ** 0.5
    assert found["high"] - found["low"] < alone, "narrower than the interval of one system alone"
    assert (found["records"], found["contexts"]) == (RECORDS, CONTEXTS)


@pytest.mark.parametrize(("contexts", "decided"), [(5, False), (6, True)])
def test_the_verdict_decides_and_not_the_interval_alone(
    project: Project, tmp_path: Path, contexts: int, decided: bool
) -> None:
    """In five contexts that differ nearly alike, the interval leaves out 0, and p cannot be below 0.05."""
    rows = [
        {
            "task": "threads",
            "id": f"r{context}-{index}",
            "context_id": f"c{context}",
            "system": system,
            "measure": "reply@1",
            # Half of the records of each context, and one more in the first.
            "value": float(system == "base" and index < 20 + (context == 0)),
        }
        for system in ("base", "both_phases")
        for context in range(contexts)
        for index in range(40)
    ]
    own = tmp_path / "own"
    own.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), own / check_gates.RECORD_VALUES)
    found = verdict(project, "{metric: threads.reply@1, not_worse_than: base}", own)
    assert found["high"] < 0 and (found["p"] < 0.05) is decided and found["p"] == 2 / 2**contexts
    assert found["passed"] is not decided
    word = "worse than" if decided else "not separable from"
    assert f"{word} base" in found["text"]
    assert f"only {contexts} contexts, so the interval is not to be trusted" in found["text"]
    other = verdict(project, "{metric: threads.reply@1, system: base, better_than: both_phases}", own)
    assert other["low"] > 0 and other["passed"] is decided
    # The whole interval must be beyond the allowed loss.
    for margin, passed in ((0.3, not decided), (0.52, True)):
        gate = f"{{metric: threads.reply@1, not_worse_than: base, margin: {margin}}}"
        assert verdict(project, gate, own)["passed"] is passed


def test_previous_is_the_last_export_of_the_project(project: Project, tmp_path: Path) -> None:
    config = project.config()
    store = project.store

    def night(key: str, right: int, *stages: str, project_name: str = "pipeline") -> None:
        folder = values(store.begin("evaluate", key), both_phases=right)
        assert folder.is_dir()
        store.commit("evaluate", key, {"stage": "evaluate", "key": key, "metrics": {}})
        named = config.model_copy(update={"project": project_name})
        with recorded_run(store, named, {"evaluate": key}) as run:
            for stage in stages:
                run.finished(ArtifactRef(stage=stage, key=key, path="", cached=False, seconds=0.0, reason=""))

    night("1" * 64, 20, "evaluate", "export")
    night("2" * 64, 60, "evaluate")  # its gates failed, so it exported nothing
    night("3" * 64, 60, "evaluate", "export", project_name="other")
    own = values(tmp_path / "own", both_phases=30)
    read: list[Any] = []
    found = verdict(project, "{metric: threads.reply@1, not_worse_than: previous}", own, read=read)
    assert read == [("evaluate", "1" * 64)], "a clean-up keeps what a verdict was made from"
    verdict(project, "{metric: threads.reply@1, at_least: 0.1}", own, read=(none := []))
    assert none == [], "no gate compares with it"
    assert "the run before (evaluate 111111111111)" in found["text"] and found["passed"]
    assert found["difference"] == pytest.approx(10 / RECORDS, abs=1e-6)
    worse = values(tmp_path / "worse", both_phases=5)
    assert not verdict(project, "{metric: threads.reply@1, not_worse_than: previous}", worse)["passed"]
    # The evaluation of the earlier export itself has nothing before it.
    again = verdict(project, "{metric: threads.reply@1, not_worse_than: previous}", own, "1" * 64)
    assert "no earlier exported run" in again["text"]


def _score(value: float | None) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "n": 10}


def _pooled(folder: Path) -> Path:
    """An evaluation with links, written answers beside choices, and calibration."""
    values(folder, both_phases=30)
    scores = {
        "systems": {"both_phases": {"reply@1": _score(0.5), "p(reply|target)": _score(None)}},
        "links": {"logs": 3, "systems": {"learned": {"link_f1": _score(0.72), "shen_f1": _score(0.4)}}},
        "generated": {"systems": {"both_phases": {"reply@1": _score(0.25), "invalid_answers": _score(0.1)}}},
        "calibration": {"both_phases": {"n": 60, "expected_calibration_error": 0.08}},
    }
    (folder / check_gates.METRICS).write_text(json.dumps(scores))
    return folder


@pytest.mark.parametrize(
    ("gate", "passed", "words"),
    [
        (
            "metric: threads.link_f1, system: learned, at_least: 0.7",
            True,
            "link_f1 of learned is 0.720, at least 0.7",
        ),
        ("metric: threads.link_f1, system: learned, at_least: 0.73", False, "is 0.720, below 0.73"),
        ("metric: threads.link_f1, system: learned, at_most: 0.71", False, "is 0.720, above 0.71"),
        ("metric: threads.shen_f1, system: learned, at_least: 0.4", True, "shen_f1 of learned is 0.400"),
        (
            "metric: threads.generated.reply@1, at_least: 0.3",
            False,
            "generated.reply@1 of both_phases is 0.250",
        ),
        ("metric: threads.generated.invalid_answers, at_most: 0.1", True, "is 0.100, at most 0.1"),
        ("metric: threads.expected_calibration_error, at_most: 0", False, "is 0.080, above 0"),
        (
            "metric: 'threads.p(reply|target)', at_least: 0.0",
            False,
            "has no value, because nothing was counted",
        ),
        ("metric: threads.reply@1, at_most: 0.5", True, "reply@1 of both_phases is 0.500, at most 0.5"),
    ],
)
def test_measures_of_all_records_together(
    project: Project, tmp_path: Path, gate: str, passed: bool, words: str
) -> None:
    config = project.config(f"gates=[{{{gate}}}]")
    assert not [line for line in require(config, "pipeline.yaml") if "gates" in line]
    found = verdict(project, f"{{{gate}}}", _pooled(tmp_path / "own"))
    assert found["passed"] is passed and words in found["text"]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (
            "metric: threads.link_f1, at_least: 0.5",
            "no system both_phases has threads.link_f1; expected one of learned",
        ),
        (
            "metric: threads.invalid_answers, at_most: 0.5",
            "has no threads.invalid_answers, because no record has what it counts; both_phases has reply@1",
        ),
        (
            "metric: threads.normalised_reply@1, not_worse_than: base",
            "no values of threads.normalised_reply@1 for each record; give at_least or at_most",
        ),
    ],
)
def test_what_the_evaluation_does_not_have_is_one_line(
    project: Project, tmp_path: Path, gate: str, words: str
) -> None:
    with pytest.raises(InputError) as refused:
        verdict(project, f"{{{gate}}}", _pooled(tmp_path / "own"))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_gate_can_name_every_measure_of_the_evaluation() -> None:
    """What the report and the terminal show by name is known to the gates, and to no task twice."""
    known = [
        name for entry in TASKS.values() for name in (*entry.facts.measures, *entry.facts.pooled_measures)
    ]
    assert len(known) == len(set(known))
    shown = {*METRIC_NAMES, *OTHER_METRICS, *LINK_NAMES, *CONVERSATION_NAMES}
    shown |= {name for names in (*METRICS, *LINK_METRICS) for name in names}
    assert shown <= set(known)


def test_runs_without_a_common_record_are_no_pass(project: Project, tmp_path: Path) -> None:
    key = "1" * 64
    folder = project.store.begin("evaluate", key)
    values(folder, both_phases=20)
    rows = pq.read_table(folder / check_gates.RECORD_VALUES).to_pylist()
    moved = [{**row, "id": f"x{row['id']}"} for row in rows]
    pq.write_table(pa.Table.from_pylist(moved), folder / check_gates.RECORD_VALUES)
    project.store.commit("evaluate", key, {"stage": "evaluate", "key": key, "metrics": {}})
    with recorded_run(project.store, project.config(), {"evaluate": key}) as run:
        run.finished(ArtifactRef(stage="export", key=key, path="", cached=False, seconds=0.0, reason=""))
    own = values(tmp_path / "own", both_phases=30)
    found = verdict(project, "{metric: threads.reply@1, not_worse_than: previous}", own)
    assert not found["passed"] and "none of the same records" in found["text"]


def test_export_obeys_and_the_lineage_tells(project: Project, tmp_path: Path) -> None:
    own = values(tmp_path / "own", both_phases=10)
    gate = "{metric: threads.reply@1, at_least: 0.5}"
    verdict(project, gate, own)
    folder = project.folder / "out"
    config = project.config(f"gates=[{gate}]")
    with pytest.raises(GateFailed, match=r"nothing is exported: threads\.reply@1 of both_phases is 0\.167"):
        check_gates.require_passed(folder, config)
    ignoring = project.config(f"gates=[{gate}]", "ignore_gates=true")
    check_gates.require_passed(folder, ignoring)
    assert STAGES["export"].settings(ignoring) != STAGES["export"].settings(config)
    assert STAGES["export"].settings(project.config()).keys() == {"model", "prompt", "export"}
    facts = RunFacts(ignoring, {"check-gates": folder}, {})
    assert "`ignore_gates` is set" in str(gate_blocks(facts))
    assert "nothing was exported" in str(gate_blocks(replace(facts, config=config)))


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (
            "{metric: threads.reply@1}",
            "expected one of at_least, at_most, not_worse_than and better_than, got none",
        ),
        (
            "{metric: threads.link_f, at_least: 1}",
            "no measure threads.link_f; expected one of threads.reply@1",
        ),
        (
            "{metric: threads.link_f, at_least: 1}",
            ", threads.link_precision, threads.link_recall, threads.link_f1, ",
        ),
        (
            "{metric: threads.link_f1, better_than: previous_post}",
            "gates.0: threads.link_f1 is counted over all records together",
        ),
        ("{metric: f1, at_least: 1}", "expected TASK.MEASURE, such as qa.f1, got 'f1'"),
        ("{metric: threads.f1, at_least: 1}", "expected one of threads.reply@1"),
        ("{metric: threads.reply@1, at_least: 60}", "gates.0.at_least: expected at most 1, got 60"),
        ("{metric: threads.reply@1, better_than: last}", "expected one of previous, base, phase1"),
        ("{metric: threads.reply@1, at_least: 1, system: previous}", "gates.0.system: no system previous"),
    ],
)
def test_wrong_gates_are_refused_before_a_run(project: Project, gate: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        require(project.config(f"gates=[{gate}]"), "pipeline.yaml")
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_failed_gate_ends_the_run_before_export(tmp_path: Path) -> None:
    """The whole command: one line, exit status 1, a report that tells, and `--ignore-gates`."""
    file = write_project(tmp_path / "project")
    config = yaml.safe_load(file.read_text())
    config["gates"] = [{"metric": "qa.exact_match", "at_least": 0.9}]
    file.write_text(yaml.safe_dump(config))

    def jora(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *words],
            cwd=file.parent,
            env={**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )

    first = jora("run", file.name)
    last = first.stderr.strip().splitlines()[-1]
    assert first.returncode == 1, first.stderr
    assert last.startswith("failed: gate not met, nothing is exported: qa.exact_match of phase1 is 0.000")
    assert "Traceback" not in first.stderr
    store = Store(file.parent / config.get("store", "runs"))
    assert not store.path("export", "x").parent.exists()
    assert "nothing was exported" in (store.root / "report.html").read_text()
    second = jora("run", file.name, "--ignore-gates")
    assert second.returncode == 0, second.stderr
    (card,) = store.root.glob("export/*/README.md")
    assert "gates_not_met" in card.read_text() and "qa.exact_match of phase1" in card.read_text()
