"""How records are built: oracles, distractors, styles, budgets, sharing, abstention, over whole builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_rankings, read_records
from retrieval.evaluation.answer_scores import qa_scores
from retrieval.prompts import answer_styles, templates
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, TablesTask, ThreadsTask
from tests.retrieval.conftest import NAMES, TOPICS

Write = Callable[[str, str], Path]
PLACES = ["Kiel", "Jena", "Ulm", "Bonn", "Trier"]


def town(number: int) -> dict[str, Any]:
    """A document whose second sentence answers its question; its neighbours are like it."""
    topic, name, place = TOPICS[number % 9], NAMES[number % 6], PLACES[number % 5]
    text = f"The {topic} of {place} is known as number {number}. It was built by {name} in {1800 + number}. "
    text += f"Visitors from {PLACES[(number + 1) % 5]} like it. They pay {number * 3} coins."
    return {"id": f"d{number}", "title": f"{topic} {number}", "text": text}


def asked(number: int, **fields: Any) -> dict[str, Any]:
    text = f"When was the {TOPICS[number % 9]} number {number} built?"
    row = {"id": f"q{number}", "document_id": f"d{number}", "question": text, "answers": [str(1800 + number)]}
    return row | fields


@pytest.fixture
def build(write: Write, tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Builds fifty documents with a question each; returns the records and the task's metrics."""
    runs: list[int] = []

    def run(
        documents: list[dict] | None = None, questions: list[dict] | None = None, **fields: Any
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        rows = {
            "documents": documents or [town(i) for i in range(50)],
            "questions": questions or [asked(i) for i in range(50)],
        }
        for name, found in rows.items():
            write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in found))
        top = {key: fields.pop(key) for key in ("seed", "test_share", "shard_records") if key in fields}
        paths = {"source": str(tmp_path / "documents.jsonl"), "questions": str(tmp_path / "questions.jsonl")}
        config = ContextConfig(**top, qa=QaTask(**paths, **({"legs": ["bm25"]} | fields)))
        runs.append(0)
        out = tmp_path / f"out{len(runs)}"
        metrics = build_record_files(config, out)["tasks"]["qa"]
        return read_records(out / "records.parquet"), metrics

    return run


def of(records: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [record for record in records if record["split"] == split]


def test_quotes_are_verbatim_and_scored_by_what_follows(build: Callable) -> None:
    records, metrics = build(answer_style="quote", oracle_share=0.7)
    quoted = 0
    for record in records:
        assert record["instruction"] == templates.QA_INSTRUCTION + templates.QUOTE_FIRST
        year = record["gold"][0]
        if not record["oracle_in_context"]:
            assert record["output"] == year
            continue
        quoted += 1
        quote, answer = record["output"].split(" ##end_quote## ##Answer: ")
        sentence = quote.removeprefix("##begin_quote## ")
        assert answer == year and year in sentence and sentence in record["input"]
    notes = [metrics["notes"][split] for split in ("train", "test")]
    assert sum(found["quoted"] for found in notes) == quoted
    assert notes[0]["quote_without_oracle"] == sum(not r["oracle_in_context"] for r in of(records, "train"))
    scores = qa_scores({r["id"]: r["output"] for r in records}, records)
    assert scores["exact_match"]["value"] == 1.0


def test_a_template_of_ones_own(build: Callable) -> None:
    template = "{{ answer }}{% if quote %} (from {{ oracles[0].id }}: {{ quote }}){% endif %}"
    records, _ = build(answer_style="template", answer_template=template)
    with_oracle = next(r for r in records if r["oracle_in_context"])
    number = with_oracle["id"].removeprefix("qa:q")
    assert with_oracle["output"].startswith(f"{1800 + int(number)} (from d{number}: It was built by ")
    with pytest.raises(InputError, match=r"qa\.answer_template: record qa:q\d+: 'nobody' is undefined"):
        build(answer_style="template", answer_template="{{ nobody }}")
    with pytest.raises(InputError, match=r"qa\.answer_template, line 1: unexpected"):
        build(answer_style="template", answer_template="{{ }")


def test_a_quotation_that_a_template_makes_up_is_caught(build: Callable) -> None:
    template = "##begin_quote## It was built in the year {{ answer }}. ##end_quote## {{ answer }}"
    with_some = "{% if answer == '1803' %}" + template + "{% else %}{{ answer }}{% endif %}"
    _, metrics = build(answer_style="template", answer_template=with_some)
    assert metrics["guards"]["leaks_dropped"]["quote_not_in_context"] == 1
    assert sum(metrics["records"].values()) == 49


def test_abstention_is_taught_and_accepted_where_no_oracle_is_there(build: Callable) -> None:
    vague = [asked(i, question="When was the one that visitors like built?") for i in range(50)]
    records, metrics = build(questions=vague, abstain=True, oracle_share=0.5, n_contexts=2)
    absent = [record for record in records if not record["oracle_in_context"]]
    assert of(absent, "train") and of(absent, "test")
    assert {record["instruction"] for record in records} == {
        f'{templates.QA_INSTRUCTION} If it is not there, answer "{templates.NO_DOCUMENT}".'
    }
    assert all((r["output"], r["gold"]) == (templates.NO_DOCUMENT, [templates.NO_DOCUMENT]) for r in absent)
    assert sum(found["abstained"] for found in metrics["notes"].values()) == len(absent)
    # Saying it is right there and wrong elsewhere.
    says_nothing = {record["id"]: templates.NO_DOCUMENT for record in records}
    score = qa_scores(says_nothing, records)["exact_match"]["value"]
    assert score == pytest.approx(len(absent) / len(records), abs=1e-6)


def test_distractors_come_from_the_ranks_that_are_asked_for(build: Callable, tmp_path: Path) -> None:
    plain, _ = build(oracle_share=1.0, n_contexts=3)
    rankings = {row["id"]: row["fused"] for row in read_rankings(tmp_path / "out1" / "rankings.parquet")}
    ranged, metrics = build(oracle_share=1.0, n_contexts=3, distractor_ranks=[4, 8])
    held_out = {r["context_id"] for r in of(plain, "test")}
    for record, other in zip(of(plain, "train"), of(ranged, "train"), strict=True):
        own = record["context_id"]
        usable = [name for name in rankings[record["id"]] if name != own and name not in held_out]
        assert set(record["context_ids"]) == {own, *usable[:2]}
        drawn = set(other["context_ids"]) - {own}
        assert len(drawn) == 2 and own in other["context_ids"]
        assert len(usable) < 8 or drawn <= set(usable[3:8])
    assert of(plain, "test") == of(ranged, "test"), "held-out prompts hold what the retriever finds"
    assert metrics["notes"].get("train", {}).get("distractor_outside_ranks", 0) == 0
    again, _ = build(oracle_share=1.0, n_contexts=3, distractor_ranks=[4, 8])
    assert again == ranged
    seeded, _ = build(oracle_share=1.0, n_contexts=3, distractor_ranks=[4, 8], seed=5, test_share=0.0)
    assert seeded != ranged


def test_near_copies_of_the_oracle_are_no_distractors(build: Callable) -> None:
    copies = [town(i) | {"id": f"copy{i}", "text": town(i)["text"] + " Really."} for i in range(50)]
    documents = [town(i) for i in range(50)] + copies
    records, metrics = build(documents=documents, oracle_share=1.0)
    for record in of(records, "train"):
        number = record["id"].removeprefix("qa:q")
        assert f"copy{number}" not in record["context_ids"]
    assert metrics["records"]["train"] > 30


def test_an_answer_may_need_several_documents(build: Callable) -> None:
    questions = [asked(i, document_id=[f"d{i}", f"d{(i + 10) % 50}"]) for i in range(50)]
    records, metrics = build(questions=questions, oracle_share=1.0, n_contexts=4)
    test_documents = {name for r in of(records, "test") for name in r["oracle_ids"]}
    for record in of(records, "train"):
        assert len(record["oracle_ids"]) == 2 and len(record["context_ids"]) == 4
        assert set(record["oracle_ids"]) <= set(record["context_ids"]) and record["oracle_in_context"]
        assert not test_documents & set(record["context_ids"])
    for record in of(records, "test"):
        assert record["oracle_in_context"] == (set(record["oracle_ids"]) <= set(record["context_ids"]))
    left = metrics["records"]["train"] + metrics["dropped"]["document_also_in_test"]
    assert left + metrics["records"]["test"] == 50
    # More oracles than texts: all of them stand there all the same.
    crowded, _ = build(questions=questions, oracle_share=1.0, n_contexts=1)
    assert {len(r["context_ids"]) for r in of(crowded, "train")} == {2}


def test_contexts_fit_the_budget_and_keep_the_answer(build: Callable) -> None:
    whole, _ = build(oracle_share=1.0)
    records, metrics = build(oracle_share=1.0, max_context_tokens=30)
    for before, record in zip(whole, records, strict=True):
        context, _, question = record["input"].rpartition("\n\n")
        assert len(context.split()) <= 30 and question.startswith("Question: ")
        assert record["context_id"] in record["context_ids"] or record["split"] == "test"
        if record["split"] == "train":
            assert record["gold"][0] in context
        assert set(record["context_ids"]) <= set(before["context_ids"])
    assert metrics["notes"]["train"]["context_shortened"] == metrics["records"]["train"]
    assert "context_over_budget" not in metrics["notes"]["train"]
    # Too small for the title and the answer's sentence: the answer stays, and it is said.
    tiny, metrics = build(oracle_share=1.0, max_context_tokens=16, documents=None)
    assert all(r["gold"][0] in r["input"] for r in of(tiny, "train"))
    # Quotations are of what is left.
    quoted, metrics = build(oracle_share=1.0, max_context_tokens=30, answer_style="quote")
    assert metrics["notes"]["train"]["quoted"] == metrics["records"]["train"]
    assert all(answer_styles.false_quotes(r["output"], r["input"]) == [] for r in quoted)


def test_questions_share_a_context(build: Callable) -> None:
    records, _ = build(oracle_share=1.0, share_contexts=4, n_contexts=3)
    apart, _ = build(oracle_share=1.0, n_contexts=3)
    assert of(records, "test") == of(apart, "test")
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in of(records, "train"):
        groups.setdefault(record["input"].rpartition("\n\n")[0], []).append(record)
    assert max(map(len, groups.values())) == 4 and len(groups) <= 13
    for group in groups.values():
        assert len({r["context_id"] for r in group}) == 1
        assert len({tuple(r["context_ids"]) for r in group}) == 1
        own = {r["oracle_ids"][0] for r in group}
        # All the right documents, and as many distractors as a question of its own has.
        assert own <= set(group[0]["context_ids"]) and len(group[0]["context_ids"]) == len(own) + 2
    # However the work is cut: the same records and the same counts.
    whole, metrics = build(oracle_share=0.6, share_contexts=4, max_context_tokens=120)
    cut, others = build(oracle_share=0.6, share_contexts=4, max_context_tokens=120, shard_records=3)
    assert whole == cut and metrics == others


def test_tables_have_styles_and_budgets(tables_folder: Path, tmp_path: Path) -> None:
    def run(name: str, **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        config = ContextConfig(test_share=0.3, tables=TablesTask(source=str(tables_folder), **fields))
        metrics = build_record_files(config, tmp_path / name)["tasks"]["tables"]
        return read_records(tmp_path / name / "records.parquet"), metrics

    plain, _ = run("plain", n_contexts=3, oracle_share=0.5)
    records, _ = run("ranged", n_contexts=3, oracle_share=0.5, distractor_ranks=[2, 3], abstain=True)
    absent = [r for r in records if not r["oracle_in_context"]]
    assert absent and all(r["gold"] == [templates.NO_TABLE] for r in absent)
    assert [r["oracle_in_context"] for r in records] == [r["oracle_in_context"] for r in plain]
    quoted, _ = run("quote", answer_style="quote")
    years = [r for r in quoted if "which year" in r["input"]]
    for record in years:
        line = record["output"].partition("##begin_quote## ")[2].partition(" ##end_quote##")[0]
        assert line in record["input"].split("\n") and record["gold"][0] in line
    one, _ = run("one", n_contexts=3, max_context_tokens=20)
    assert {len(r["context_ids"]) for r in one} == {1} and all(r["oracle_in_context"] for r in one)
    with pytest.raises(InputError, match=r"no table has at most None rows and 8 tokens"):
        run("none", max_context_tokens=8)


def test_threads_may_do_without_the_answered_post(threads_file: Path, tmp_path: Path) -> None:
    def run(name: str, **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        task = {"source": str(threads_file), "legs": ["bm25", "recency"], "n_contexts": 3} | fields
        metrics = build_record_files(
            ContextConfig(test_share=0.3, threads=ThreadsTask(**task)), tmp_path / name
        )
        return read_records(tmp_path / name / "records.parquet"), metrics["tasks"]["threads"]

    records, metrics = run("abstain", oracle_share=0.6, abstain=True)
    absent = [r for r in of(records, "train") if not r["oracle_in_context"]]
    share = 1 - len(absent) / metrics["records"]["train"]
    assert 0.5 < share < 0.75
    assert all(
        r["output"] == r["choices"][-1] == templates.NO_POST and r["gold"] == [templates.NO_POST]
        for r in absent
    )
    assert all(not set(r["oracle_ids"]) & set(r["context_ids"]) for r in absent)
    ranged, _ = run("ranged", distractor_ranks=[2, 4])
    assert all(r["oracle_in_context"] and len(r["context_ids"]) <= 3 for r in of(ranged, "train"))
    short, metrics = run("short", max_context_tokens=30)
    for record in short:
        posts = record["input"].rpartition("\n\n")[0]
        assert len(posts.split()) <= 30
        assert record["split"] == "test" or record["gold"]
    assert metrics["notes"]["train"]["context_shortened"] > 0


def test_settings_that_contradict_each_other_are_refused() -> None:
    for wrong, said in (
        ({"distractor_ranks": [5, 2]}, r"must be \[lowest, highest\]"),
        ({"distractor_ranks": [0, 2]}, r"must be \[lowest, highest\]"),
        ({"answer_style": "template"}, "go together"),
        ({"answer_template": "x"}, "go together"),
    ):
        with pytest.raises(ValidationError, match=said):
            QaTask(source="d", questions="q", **wrong)
    with pytest.raises(ValidationError, match="below 1 needs abstain"):
        ThreadsTask(source="t", oracle_share=0.5)
