"""`jora compare`: two runs that differ in one setting, whose differences are known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.engine.run_stage import run_stages
from flows.engine.stage import StageContext
from flows.housekeeping.stored_runs import read_contents
from flows.report.comparison.compared_runs import ComparedRun, Comparison, kinds_of
from flows.report.comparison.comparison_page import comparison_page, comparison_sections
from jora_core.base.errors import InputError
from retrieval.evaluation.context_bootstrap import ContextBootstrap
from tests.flows.conftest import Project

RECORDS, CONTEXTS = 60, 12
STAGES = ("build-context", "convert-model", "finetune-structure", "finetune-task", "evaluate")
LOW, HIGH = 2e-4, 3e-4
CHOICES = [f"#{number} Ann" for number in range(1, 9)]


def record(index: int) -> dict[str, Any]:
    """A comment whose right post is the last, the third last, the first, or not in the prompt."""
    gold = ["#8 Ann", "#6 Ann", "#1 Ann", "#99 Bob"][index % 4]
    posts = [f"post {number} of {index}\n{choice}" for number, choice in enumerate(CHOICES)]
    return {
        "id": f"r{index}",
        "task": "threads",
        "split": "test",
        "context_id": f"c{index % CONTEXTS}",
        "oracle_in_context": index % 4 != 3,
        "gold": [gold],
        "choices": CHOICES,
        "input": "\n\n".join([*posts, f"Comment by Eve: question <{index}>?"]),
    }


def rights(rate: float) -> np.ndarray:
    """Whether the tuned model is right: with the higher rate on 12 records more, and on 4 others less."""
    right = np.arange(RECORDS) % 3 == 0
    if rate == HIGH:
        right[[1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17]] = True
        right[[0, 3, 6, 9]] = False
    return right.astype(float)


def write_evaluation(context: StageContext) -> None:
    rate = context.config.phases[1].optim.learning_rate
    systems = {"base": np.zeros(RECORDS), "both_phases": rights(rate)}
    rows, answers = [], []
    for system, values in systems.items():
        for index, value in enumerate(values):
            name = {"task": "threads", "id": f"r{index}", "system": system}
            rows.append({**name, "context_id": f"c{index % CONTEXTS}", "measure": "reply@1", "value": value})
            answers.append({**name, "choice": record(index)["gold"][0] if value else "#2 Ann", "text": None})
    pq.write_table(pa.Table.from_pylist(rows), context.output_dir / "record_values.parquet")
    pq.write_table(pa.Table.from_pylist(answers), context.output_dir / "predictions.parquet")
    scores = {"systems": {name: {} for name in systems}}
    (context.output_dir / "metrics.json").write_text(json.dumps(scores))


def write_log(context: StageContext) -> None:
    steps = [{"step": step, "loss": 2 / step, "validation_loss": 3 / step} for step in range(1, 9)]
    (context.output_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))


def write_records(context: StageContext) -> None:
    table = pa.Table.from_pylist([record(index) for index in range(RECORDS)])
    pq.write_table(table, context.output_dir / "records.parquet")


@pytest.fixture
def compared(project: Project) -> Comparison:
    writers = {
        "evaluate": write_evaluation,
        "finetune-structure": write_log,
        "finetune-task": write_log,
        "build-context": write_records,
    }
    for stage, write in writers.items():
        run = project.registry[stage].run

        def both(context: StageContext, run: Any = run, write: Any = write) -> dict[str, Any]:
            result = run(context)
            write(context)
            return result

        object.__setattr__(project.registry[stage], "run", both)
    for rate in (LOW, HIGH):
        run_stages(
            STAGES, project.config(f"phases.1.optim.learning_rate={rate}"), project.store, project.registry
        )
    newest, oldest = read_contents(project.store).runs
    runs = [ComparedRun.read(name, run, project.store) for name, run in (("A", oldest), ("B", newest))]
    return Comparison(tuple(runs), seed=0, resamples=500)


def test_the_setting_that_differs_is_named(compared: Comparison) -> None:
    assert compared.settings == [("phases.1.optim.learning_rate", ("0.0002", "0.0003"))]
    assert compared.inputs == [] and compared.code_files == 0


def test_differences_are_paired(compared: Comparison) -> None:
    (tuned,) = compared.differences["B"]
    assert compared.unchanged == {"B": ["base"]}
    assert tuned.system == "both_phases" and tuned.records == RECORDS
    assert tuned.first == pytest.approx(20 / 60) and tuned.other == pytest.approx(28 / 60)
    assert tuned.paired is not None
    assert (tuned.paired["only_one"], tuned.paired["only_other"]) == (12, 4)
    assert tuned.paired["value"] == pytest.approx(8 / 60, abs=1e-6)
    # The same resamples of contexts as everywhere.
    contexts = [f"c{index % CONTEXTS}" for index in range(RECORDS)]
    expected = ContextBootstrap.over(contexts, 0, 500).difference(rights(HIGH), rights(LOW))
    assert {name: tuned.paired[name] for name in ("low", "high", "p")} == pytest.approx(
        {name: expected[name] for name in ("low", "high", "p")}
    )


def test_slices_cover_all_records(compared: Comparison) -> None:
    slices = {one.system: one for one in compared.slices["B"]}
    assert sum(one.records for one in slices.values()) == RECORDS
    assert slices["right post: not in the prompt"].records == 15
    second = slices["right post: second to fifth last"]
    index = [i for i in range(RECORDS) if i % 4 == 1]
    assert second.first == pytest.approx(rights(LOW)[index].mean())
    assert second.other == pytest.approx(rights(HIGH)[index].mean())
    assert kinds_of({"choices": [], "oracle_in_context": True, "gold": ["x"]}) == ["answer in the prompt"]


def test_ten_records_that_changed_sides(compared: Comparison) -> None:
    assert compared.counts_changed["B"] == {"threads": (4, 12)}
    found = compared.changed["B"]
    assert len(found) == 10 and sum(one.right == ("A",) for one in found) == 4
    before, after = rights(LOW), rights(HIGH)
    for one in found:
        index = int(one.record["id"].removeprefix("r"))
        assert before[index] != after[index] and one.right == (("B",) if after[index] else ("A",))
        assert one.answers[one.right[0]] == one.record["gold"][0] and "#2 Ann" in one.answers.values()
    assert [one.record["id"] for one in compared._changed(compared.others[0])] == [
        one.record["id"] for one in found
    ], "the same ones at every call"


def test_the_page(compared: Comparison) -> None:
    names = [section.name for section in comparison_sections(compared)]
    assert names == ["runs", "settings", "measures", "curves", "slices", "changed"]
    page = comparison_page(compared)
    assert "phases.1.optim.learning_rate" in page and "<svg" in page
    # Eight more of 60 are right.
    assert "+13.3 (" in page and "question &lt;" in page and page.count("<article>") == 10


def test_the_command(compared: Comparison, project: Project) -> None:
    def jora(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "compare", *arguments], capture_output=True, text=True
        )

    first, second = (run.run.record.id for run in compared.runs)
    config, page = ("-c", str(project.config_file)), Path("compare.html")
    done = jora(first, second, *config, "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "phases.1.optim.learning_rate" in done.stdout and "+13.3 (" in done.stdout
    assert done.stdout.count("\nthreads r") == 10 and page.is_file()
    found = json.loads(jora(first, "latest", *config, "--json").stdout)
    assert found["settings"] == {"phases.1.optim.learning_rate": {"A": "0.0002", "B": "0.0003"}}
    assert len(found["against_the_first"]["B"]["changed"]) == 10
    for arguments, words in (
        ((first,), "two runs"),
        ((first, first), "twice"),
        ((first, "none"), "no run 'none'"),
    ):
        refused = jora(*arguments, *config)
        assert refused.returncode == 2 and words in refused.stderr


def test_a_run_without_an_evaluation_is_refused(project: Project) -> None:
    run_stages(["build-context"], project.config(), project.store, project.registry)
    (run,) = read_contents(project.store).runs
    with pytest.raises(InputError, match="has no evaluation"):
        ComparedRun.read("A", run, project.store)
