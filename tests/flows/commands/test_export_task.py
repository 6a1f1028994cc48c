"""`jora evaluate --export-task`: which records and right choices the task gets, and what its page says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands.prompts import export_task
from flows.commands.prompts.export_task import choice_parts, export_tasks
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef
from flows.engine.keys import identify
from flows.stages import STAGES
from jora_core.base.errors import InputError
from jora_core.base.record_columns import RECORD_COLUMNS, arrow_schema
from jora_core.specs.answers import TaskFilesSpec
from retrieval.build.record_files import RANKING_COLUMNS
from tests.flows.conftest import Project
from tests.flows.stages.test_stages import records_and_rankings

RESULT = {"documents": 7, "shortened": 0, "differing": 0, "adds_bos": False, "longer_than_model": 0}


def _export(
    project: Project, monkeypatch: pytest.MonkeyPatch, config: PipelineConfig, result: dict[str, Any]
) -> tuple[list[str], TaskFilesSpec, list[dict[str, Any]]]:
    """Write the tasks of an evaluation whose build is real files; return lines, spec and drawn records."""
    records, rankings = records_and_rankings()
    # One comment starts a conversation, and of one the right post is not in the prompt.
    threads = [row for row in rankings if row["split"] == "test" and row["task"] == "threads"]
    threads[0]["gold_ids"] = []
    threads[1]["gold_ids"] = ["elsewhere"]
    key = identify(config, STAGES, until="evaluate")["build-context"].key
    built = project.store.path("build-context", key)
    built.mkdir(parents=True)
    for name, columns, rows in (
        ("records", RECORD_COLUMNS, records),
        ("rankings", RANKING_COLUMNS, rankings),
    ):
        pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(columns)), built / f"{name}.parquet")
    scored = project.folder / "scored"
    scored.mkdir()
    (scored / "metrics.json").write_text(
        json.dumps({"systems": {"both_phases": {"reply@1": {"value": 0.625, "n": 7}}}})
    )
    found: list[tuple[TaskFilesSpec, list[dict[str, Any]]]] = []

    def child(module: str, spec: TaskFilesSpec, workdir: Path) -> dict[str, Any]:
        assert module == "jora_core.commands.task_files.write_task"
        found.append((spec, pq.read_table(spec.records).to_pylist()))
        return result

    monkeypatch.setattr(export_task, "run_child", child)
    reference = ArtifactRef(stage="evaluate", key="e" * 64, path=str(scored), cached=True, seconds=0.0)
    lines = export_tasks(config, reference, project.store, project.folder / "task")
    ((spec, drawn),) = found
    return lines, spec, drawn


def test_the_task_has_the_scored_records_and_their_right_choices(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project.config("prompt=alpaca", "evaluate.max_seq_len=77", "evaluate.mode=both")
    lines, spec, drawn = _export(project, monkeypatch, config, RESULT)
    assert [row["id"] for row in drawn] == [f"test-{n}" for n in range(8)]
    assert spec.gold == {"test-1": [], **{f"test-{n}": [0] for n in range(2, 8)}}
    assert (spec.name, spec.max_seq_len, spec.mode, spec.prompt.template) == (
        "jora_threads",
        77,
        "both",
        "alpaca",
    )
    assert (spec.model, spec.folder) == (project.folder / "model", project.folder / "task")
    assert len(lines) == 1 and "task jora_threads, 7 documents" in lines[0]
    page = (project.folder / "task" / "jora_threads.md").read_text()
    assert "--model_args pretrained=EXPORT/model --tasks jora_threads --include_path DIR" in page
    assert "| acc | reply@1 | 0.6250 |" in page and "| lm-eval | here | Both phases |" in page
    assert "lm-eval makes the same tokens of every document." in page


def test_what_lm_eval_reads_otherwise_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    result = RESULT | {"differing": 2, "adds_bos": True, "longer_than_model": 1}
    lines, _, _ = _export(project, monkeypatch, project.config(), result)
    assert [line.startswith("warning: ") for line in lines] == [False, True, True]
    page = (project.folder / "task" / "jora_threads.md").read_text()
    assert "pretrained=EXPORT/model,add_bos_token=False --tasks" in page
    assert "of 2 of 7 documents" in page and "1 of 7 documents are longer than the model's" in page
    assert "the same tokens of every document" not in page


def test_a_configuration_without_choices_is_refused(project: Project) -> None:
    assert [part.task for part in choice_parts(project.config())] == ["threads"]
    for change in ("evaluate.max_records=0", "evaluate.mode=generate"):
        with pytest.raises(InputError, match="--export-task: this configuration scores no choices"):
            choice_parts(project.config(change))
