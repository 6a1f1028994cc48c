"""From a source file to the number of the report: HotpotQA's joint scores and canonical values of tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands.print_pipeline import print_scores
from flows.report.blocks import Prose, Table
from flows.report.facts import RunFacts
from flows.report.sections import evaluation
from flows.stages import evaluate
from flows.stages.evaluate import EVALUATE
from jora_core.specs.answers import PredictSpec
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from tests.flows.conftest import Project
from tests.flows.stages.test_stages import context_for

QUESTIONS = 16
Answer = Callable[[dict[str, Any]], str]


def _write_hotpotqa(folder: Path) -> None:
    """Questions whose answer needs the second sentence of one paragraph and the first of another."""
    rows = []
    for n in range(QUESTIONS):
        sky, sea = f"Skylark{n}", f"Seagull{n}"
        context = [
            [sky, [f"{sky} is a ship.", f" {sky} was built by Otto{n} Maker{n}.", " It is blue."]],
            [sea, [f"Otto{n} Maker{n} was born in Town{n}.", f" {sea} is his other ship."]],
        ]
        facts = [[sky, 1], [sea, 0]]
        rows.append(
            {"_id": f"q{n}", "question": f"Where was the builder of {sky} born, who made {sea}?"}
            | {"answer": f"Town{n}", "context": context, "supporting_facts": facts}
        )
    (folder / "hotpot.json").write_text(json.dumps(rows))


def _quoted(*sentences: str, answer: str) -> str:
    return " ".join(f"##begin_quote## {each} ##end_quote##" for each in sentences) + f" ##Answer: {answer}"


def _evaluated(
    project: Project, monkeypatch: pytest.MonkeyPatch, say: dict[str, Answer], *overrides: str
) -> tuple[dict[str, Any], dict[str, str], list[dict[str, Any]]]:
    """Build the records of the project, and let each system answer them.

    Returns:
        The scores; the report's tables as (system's score by title), with its prose under ""; the records.
    """
    config = project.config("evaluate.max_records=0", *overrides)
    context = context_for(project, "evaluate", config)
    build_record_files(config.context, context.upstream["build-context"])

    def child(module: str, spec: PredictSpec, workdir: Path) -> dict[str, Any]:
        rows = [
            {
                "id": row["id"],
                "system": system,
                "choice": "",
                "choice_logprob": None,
                "text": say[system](row),
            }
            for row in pq.read_table(spec.records).to_pylist()
            for system in spec.systems
        ]
        pq.write_table(pa.Table.from_pylist(rows), workdir / "predictions.parquet")
        return {}

    monkeypatch.setattr(evaluate, "run_child", child)
    EVALUATE.run(context)
    scores = json.loads((context.output_dir / "metrics.json").read_text())
    blocks = evaluation(RunFacts(config, {"evaluate": context.output_dir}, {}))
    shown = {block.caption: str(block.rows) for block in blocks if isinstance(block, Table)}
    shown[""] = " ".join(block.text for block in blocks if isinstance(block, Prose))
    records = read_records(context.upstream["build-context"] / "records.parquet", split="test")
    return scores, shown, records


def _hotpotqa_project(project: Project) -> tuple[str, ...]:
    _write_hotpotqa(project.folder)
    qa = {"source": "hotpot.json", "legs": ["bm25"], "n_contexts": 3, "answer_style": "quote"}
    project.raw["context"] = {"qa": qa, "test_share": 0.4}
    project.raw["phases"] = [{**project.raw["phases"][0], "tasks": ["qa"]}]
    return ("evaluate.qa_max_records=100", "evaluate.tables_max_records=0")


def test_joint_scores_from_the_source_file_to_the_report(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = _hotpotqa_project(project)

    def number(row: dict[str, Any]) -> str:
        return row["id"].removeprefix("qa:q")

    def right(row: dict[str, Any]) -> str:
        n = number(row)
        both = (f"Skylark{n} was built by Otto{n} Maker{n}.", f"Otto{n} Maker{n} was born in Town{n}.")
        return _quoted(*both, answer=f"Town{n}")

    def half(row: dict[str, Any]) -> str:
        """One of two facts and one invented, half of the answer's words too much."""
        n = number(row)
        return _quoted(f"Otto{n} Maker{n} was born in Town{n}.", "He never was.", answer=f"Old Town{n}")

    scores, shown, records = _evaluated(project, monkeypatch, {"base": half, "phase1": right}, *overrides)
    assert len(records) > 3 and all(row["facts"] for row in records)
    base, phase1 = scores["systems"]["base"], scores["systems"]["phase1"]
    names = ("hotpotqa_exact_match", "supporting_fact_exact_match", "joint_exact_match", "joint_f1")
    assert [phase1[name]["value"] for name in names] == [1.0] * 4
    assert phase1["joint_f1"]["n"] == len(records)
    # Answer: precision 1/2, recall 1. Facts: 1/2 and 1/2. Joint: 1/4 and 1/2, so F1 is 1/3.
    assert [base[name]["value"] for name in names[:3]] == [0.0, 0.0, 0.0]
    assert base["hotpotqa_f1"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert base["supporting_fact_f1"]["value"] == 0.5
    assert base["joint_f1"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert "left_out" not in scores
    (title,) = [title for title in shown if title.startswith("Answer and supporting facts, F1 (HotpotQA)")]
    assert "33.3" in shown[title] and "100.0" in shown[title]
    # The systems are compared by it too.
    (compared,) = scores["comparisons"]["qa"]["joint_f1"]
    assert compared["value"] == pytest.approx(2 / 3, abs=1e-6)
    print_scores(scores)
    assert "joint_f1" in capsys.readouterr().out


def test_without_quotations_or_facts_the_report_says_why(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = _hotpotqa_project(project)
    say: dict[str, Answer] = dict.fromkeys(("base", "phase1"), lambda row: row["gold"][0])
    # The drawn records that the child gets have their right answers.
    scores, shown, _ = _evaluated(project, monkeypatch, say, *overrides)
    assert "joint_f1" not in scores["systems"]["phase1"]
    assert "no system quotes" in scores["left_out"]["qa"][0] and "no system quotes" in shown[""]
    print_scores(scores)
    assert "not measured: HotpotQA's answer" in " ".join(capsys.readouterr().out.split())


def test_sentences_are_found_in_chunks_and_shortened_prompts(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places of the sentences of the prompt are those of the source's sentences, by number."""
    overrides = _hotpotqa_project(project)
    say: dict[str, Answer] = dict.fromkeys(("base", "phase1"), lambda row: "")
    _, _, records = _evaluated(project, monkeypatch, say, *overrides)
    rows = json.loads((project.folder / "hotpot.json").read_text())
    sentences = {title: each for row in rows for title, each in row["context"]}
    found = 0
    for record in records:
        for document, number, start, end in map(json.loads, record["sentences"]):
            title = document.split("#")[0]
            assert record["input"][start:end] == sentences[title][number].strip()
            found += 1
        assert [json.loads(fact)[1] for fact in record["facts"]] == [1, 0]
    assert found >= 2 * len(records)


def _write_tables(folder: Path, tagged: str) -> None:
    """Two corpora of one table each; the values are numbers with a comma and dates in words."""
    for name in ("learn", "ask"):
        root = folder / name
        (root / "data").mkdir(parents=True)
        (root / "csv").mkdir()
        (root / "csv" / "1.csv").write_text(f'"town","people","since"\n"{name}","1,000","May 1990"\n')
        (root / "data" / "training.tsv").write_text(
            "id\tutterance\tcontext\ttargetValue\n"
            f"{name}1\thow many people?\tcsv/1.csv\t1,000\n"
            f"{name}2\tsince when?\tcsv/1.csv\tMay 1990\n"
            f"{name}3\twhich town and how many?\tcsv/1.csv\t{name}|1,000\n"
        )
        if tagged:
            (root / "tagged" / "data").mkdir(parents=True)
            (root / "tagged" / "data" / "training.tagged").write_text(tagged.replace("NAME", name))


TAGGED = (
    "id\tutterance\tcontext\ttargetValue\ttargetCanon\ttargetCanonType\n"
    "NAME1\thow many people?\tcsv/1.csv\t1,000\t1000.0\tnumber\n"
    "NAME2\tsince when?\tcsv/1.csv\tMay 1990\t1990-05-xx\tdate\n"
    "NAME3\twhich town and how many?\tcsv/1.csv\tNAME|1,000\tNAME|1000.0\tstring|number\n"
)


@pytest.mark.parametrize("tagged", [TAGGED, ""])
def test_canonical_values_from_the_source_file_to_the_report(
    project: Project, monkeypatch: pytest.MonkeyPatch, tagged: str
) -> None:
    _write_tables(project.folder, tagged)
    project.raw["context"] = {"tables": {"source": "learn", "test_source": "ask"}}
    project.raw["phases"] = [{**project.raw["phases"][0], "tasks": ["tables"]}]
    canonical = {"tables:ask1": "1000", "tables:ask2": "1990-05-xx", "tables:ask3": "ask, 1000.0"}
    say: dict[str, Answer] = {
        "base": lambda row: "1,000",
        "phase1": lambda row: canonical[row["id"]],
    }
    scores, shown, records = _evaluated(
        project, monkeypatch, say, "evaluate.tables_max_records=10", "evaluate.qa_max_records=0"
    )
    right = scores["systems"]["phase1"]["denotation_accuracy"]
    # Without the tagged files the date is compared as a text, and the number is read from the text.
    assert (right["value"], right["n"]) == (1.0 if tagged else pytest.approx(2 / 3, abs=1e-6), 3)
    assert scores["systems"]["base"]["denotation_accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    (title,) = [title for title in shown if title.startswith("Table questions, denotation accuracy")]
    assert ("100.0" if tagged else "66.7") in shown[title]
    assert [row["canonical"] for row in records] == (
        [["1000.0"], ["1990-05-xx"], ["ask", "1000.0"]] if tagged else [[], [], []]
    )
    assert ("3 of 3 questions have none" in shown[""]) == (not tagged)
    assert ("left_out" in scores) == (not tagged)
