"""The evaluation of model and learned fusion together, weighed on threads that no phase was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.configuration.schema import PipelineConfig
from flows.report.statistics_sections import combined_differences
from flows.stages import evaluate
from flows.stages.evaluate import EVALUATE
from jora_core.base.errors import InputError
from jora_core.base.record_columns import LEARNED_RECORD_COLUMNS, RECORD_COLUMNS, arrow_schema
from jora_core.specs.answers import PredictSpec
from retrieval.build.record_files import LEARNED_RANKING_COLUMNS, RANKING_COLUMNS
from retrieval.evaluation.threads.link_rows import LINK_COLUMNS
from tests.flows.conftest import Project
from tests.flows.stages.test_stages import context_for, links_of, records_and_rankings

LEARNED = (
    "context.threads.fusion=learned",
    "evaluate.tables_max_records=0",
    "evaluate.qa_max_records=0",
    "evaluate.combine_records=100",
)


def _config(project: Project, share: float, *overrides: str) -> PipelineConfig:
    phase = "phases.finetune-task"
    return project.config(
        *LEARNED, f"{phase}.validation_share={share}", f"{phase}.evaluate_every=2", *overrides
    )


def _evaluate(
    project: Project, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[tuple[list[str], list[str]]]]:
    """Run the stage with a model that is right where the fusion is wrong, and unsure where it is right.

    Returns:
        The scores, and for each child process its systems and the ids of its records.
    """
    context = context_for(project, "evaluate", config)
    records, rankings = records_and_rankings()
    for number, row in enumerate(row for row in records if row["task"] == "threads"):
        right = number % 4 < 2
        row["choice_scores"] = [-0.2, -2.0] if right else [-0.8, -0.7]
    wrong = {row["id"] for row in records if row["task"] == "threads" and row["choice_scores"][0] < -0.5}
    for row in rankings:
        row["learned"] = row["candidate_ids"][:: -1 if row["id"] in wrong else 1]
        row["fused"] = row["learned"]
        row["learned_scores"] = [-0.8, -0.7, -9.0]
    for name, columns, rows in (
        ("records", RECORD_COLUMNS | LEARNED_RECORD_COLUMNS, records),
        ("rankings", RANKING_COLUMNS | LEARNED_RANKING_COLUMNS, rankings),
        ("links", LINK_COLUMNS, links_of(rankings)),
    ):
        filled = [{"choice_scores": []} | row for row in rows]
        path = context.upstream["build-context"] / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(filled, schema=arrow_schema(columns)), path)
    asked: list[tuple[list[str], list[str]]] = []

    def child(module: str, spec: PredictSpec, workdir: Path, **_: Any) -> dict[str, Any]:
        given = pq.read_table(spec.records).to_pylist()
        assert all(row["split"] == spec.split for row in given), "the child reads records of one split"
        asked.append((list(spec.systems), [row["id"] for row in given]))
        rows = []
        for system in spec.systems:
            for row in given:
                sure = [-0.1, -3.0] if row["id"] in wrong else [-0.75, -0.7]
                found = [-0.7, -0.7] if system == "base" else sure
                best = row["choices"][0 if found[0] > found[1] else 1]
                rows.append(
                    {"id": row["id"], "system": system, "choice": best, "choice_logprob": max(found)}
                    | {"choice_logprobs": found, "text": ""}
                )
        pq.write_table(pa.Table.from_pylist(rows), workdir / "predictions.parquet")
        return {}

    monkeypatch.setattr(evaluate, "run_child", child)
    EVALUATE.run(context)
    return json.loads((context.output_dir / "metrics.json").read_text()), asked


def test_both_together_are_better_than_each(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(project, 0.7)
    scores, asked = _evaluate(project, config, monkeypatch)
    phase = config.phases[1]
    unseen = [f"train-{n}" for n in range(8) if phase.validates(f"thread-train-{n}", config.seed)]
    assert 1 < len(unseen) < 8
    assert asked == [
        (["base", "phase1", "both_phases"], [f"test-{n}" for n in range(8)]),
        (["both_phases"], unseen),
    ]
    reply = {name: values["reply@1"]["value"] for name, values in scores["systems"].items()}
    assert (reply["learned"], reply["both_phases"], reply["model_and_learned"]) == (0.5, 0.5, 1.0)
    combined = scores["combined"]
    assert combined["system"] == "both_phases" and combined["weights"]["fitted_on"] == len(unseen)
    assert combined["weights"]["model"] > 0 and combined["weights"]["learned"] > 0
    assert set(combined) == {"system", "weights", "brier"}
    # Right in all comments in place of half of them.
    brier = combined["brier"]
    assert 0 < brier["together"] < brier["learned"] < 1 and brier["difference"]["high"] < 0
    assert brier["difference"]["value"] == pytest.approx(brier["together"] - brier["learned"], abs=2e-6)
    differences = combined_differences(scores)
    assert list(differences) == ["both_phases", "learned"]
    for difference in differences.values():
        assert (difference["value"], difference["only_one"], difference["only_other"]) == (0.5, 4, 0)
    assert scores["drawn"]["threads"] == {"records": 8, "of_records": 8, "contexts": 8, "of_contexts": 8}


def test_without_unseen_comments_nothing_is_combined(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no training thread is kept for validation"):
        _evaluate(project, _config(project, 1e-9), monkeypatch)
    scores, asked = _evaluate(project, _config(project, 0.6, "evaluate.combine_records=0"), monkeypatch)
    assert "combined" not in scores and "model_and_learned" not in scores["systems"] and len(asked) == 1


def test_prompts_that_a_right_post_was_put_into_weigh_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fusion would look surer than it is: it had left the right post out."""
    config = _config(project, 0.7)
    before = _evaluate(project, config, monkeypatch)[1][-1][1]
    monkeypatch.setattr(evaluate, "_as_held_out", lambda config, row, ranking: row["id"] != before[0])
    assert _evaluate(project, config, monkeypatch)[1][-1][1] == before[1:]
    monkeypatch.undo()
    row, n = {"context_ids": ["b", "a"]}, config.context.threads.n_contexts
    rest = [f"c{number}" for number in range(n)]
    assert evaluate._as_held_out(config, row, {"fused": ["a", "b", *rest]})
    assert not evaluate._as_held_out(config, row, {"fused": ["a", *rest, "b"]})
    # The ranking that chooses the posts decides.
    both = {"fused": ["a", "b", *rest], "learned": ["a", *rest, "b"]}
    assert not evaluate._as_held_out(config, row, both)
    assert evaluate._as_held_out(config, row, both | {"reranked": ["b", "a"]})


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("context.threads.fusion=rrf", "learned fusion"),
        ("evaluate.mode=generate", "evaluate.mode"),
        ("evaluate.max_records=0", "score thread records"),
        ("phases.finetune-task.validation_share=0", "validation_share"),
    ],
)
def test_settings_that_cannot_combine_are_refused(project: Project, override: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        _config(project, 0.1, override)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("evaluate.mode=both", "set evaluate.mode to choice"),
        ("evaluate.systems=[base, shuffled]", "shuffled changes the posts of a prompt"),
        ("context.threads.abstain=true", "abstain has no post"),
    ],
)
def test_settings_that_have_no_channel_are_refused(project: Project, override: str, problem: str) -> None:
    channel = "context.threads.direction=channel"
    project.config(channel, "evaluate.mode=choice")
    with pytest.raises(InputError, match=problem):
        project.config(channel, "evaluate.mode=choice", override)
    # Nothing of it is scored.
    if not override.startswith("context"):
        project.config(channel, override, "evaluate.max_records=0")
