"""Directionality by hand, and the intervals against a plain bootstrap loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from retrieval.evaluation.answer_scores import (
    Prediction,
    directionality,
    prediction_from_answer,
    qa_scores,
    tables_scores,
)
from retrieval.prompts import templates


def row(key: str, context: str, gold: str, **extra: Any) -> dict[str, Any]:
    base = {
        "id": key,
        "context_id": context,
        "task": "threads",
        "candidate_ids": ["2", "3", "4"],
        "candidate_authors": ["Lena", "Marta", "Lena"],
        "opening_id": "1",
        "opening_author": "Oskar",
        "gold_ids": [gold],
        "gold_authors": [{"1": "Oskar", "2": "Lena", "3": "Marta", "4": "Lena"}[gold]],
        "bm25": ["3", "2", "4"],
    }
    return base | extra


ROWS = [row("a", "t1", "1"), row("b", "t1", "3"), row("c", "t2", "4"), row("d", "t3", "2")]


def test_baselines_and_models_by_hand() -> None:
    model = {
        "a": Prediction("1", "oskar "),  # both right
        "b": Prediction("2", "Marta"),  # target right, post wrong
        "c": Prediction("4", "Marta"),  # post right, target wrong; d is missing
    }
    out = directionality({"base": model}, ROWS)
    systems = out["systems"]
    assert list(systems) == ["random", "opening_post", "previous_post", "bm25", "base"]
    values = {name: {m: s["value"] for m, s in metrics.items()} for name, metrics in systems.items()}
    assert values["opening_post"] == {
        "target@1": 0.25,
        "reply@1": 0.25,
        "joint": 0.25,
        "p(reply|target)": 1.0,
        "p(reply|not target)": 0.0,
    }
    assert values["previous_post"] == {
        "target@1": 0.5,
        "reply@1": 0.25,
        "joint": 0.25,
        "p(reply|target)": 0.5,
        "p(reply|not target)": 0.0,
    }
    assert values["bm25"] == values["opening_post"]
    # Of the two comments whose author is missed, c has the right post.
    half = dict.fromkeys(("target@1", "reply@1", "p(reply|target)", "p(reply|not target)"), 0.5)
    assert values["base"] == {**half, "joint": 0.25}
    assert systems["base"]["p(reply|target)"]["n"] == 2
    assert (out["n"], out["contexts"]) == (4, 3)
    assert directionality({"base": model}, ROWS) == out


def test_any_parent_and_its_author_count() -> None:
    rows = [row("a", "t", "2", gold_ids=["2", "3"], gold_authors=["Lena", "Marta"])]
    out = directionality({"m": {"a": Prediction("3", "Lena")}}, rows)["systems"]["m"]
    assert out["joint"]["value"] == 1.0


def test_ids_choose_the_rows_and_empty_ratios_are_none() -> None:
    out = directionality({"m": {}}, ROWS, ids={"b"})["systems"]
    assert out["m"]["target@1"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 1}
    assert out["m"]["p(reply|target)"] == {"value": None, "low": None, "high": None, "n": 0}
    assert directionality({}, [])["systems"]["random"]["joint"]["n"] == 0


def test_random_is_seeded_and_near_its_expectation() -> None:
    rows = [row(f"r{i}", f"t{i % 50}", "3") for i in range(3000)]
    out = directionality({}, rows, seed=3, resamples=200)["systems"]["random"]
    assert out["reply@1"]["value"] == pytest.approx(1 / 3, abs=0.03)
    assert out["reply@1"]["low"] < out["reply@1"]["value"] < out["reply@1"]["high"]
    assert directionality({}, rows, seed=4, resamples=200)["systems"]["random"] != out


def test_intervals_equal_a_bootstrap_by_context() -> None:
    rng = np.random.default_rng(5)
    rows = [row(f"r{i}", f"t{rng.integers(40)}", "3") for i in range(800)]
    level = rng.random(40)
    right = [rng.random() < level[int(r["context_id"][1:])] for r in rows]
    answers = {r["id"]: Prediction("3" if ok else "2", "Marta") for r, ok in zip(rows, right, strict=True)}
    found = directionality({"m": answers}, rows)["systems"]["m"]["reply@1"]
    groups = [
        [ok for r, ok in zip(rows, right, strict=True) if r["context_id"] == f"t{i}"] for i in range(40)
    ]
    draws = []
    for _ in range(3000):
        picked = [groups[i] for i in rng.integers(40, size=40)]
        draws.append(sum(map(sum, picked)) / sum(map(len, picked)))
    low, high = np.percentile(draws, [2.5, 97.5])
    assert found["low"] == pytest.approx(low, abs=0.012)
    assert found["high"] == pytest.approx(high, abs=0.012)
    # Clustered by context, the interval is wider than the binomial one.
    assert found["high"] - found["low"] > 2 * 1.96 * np.sqrt(np.mean(right) * (1 - np.mean(right)) / 800)


def test_answers_are_read_against_the_context() -> None:
    record = {"context_ids": ["11", "12"]}
    assert prediction_from_answer("#2 Lena", record) == Prediction("12", "Lena")
    assert prediction_from_answer("#3 Lena", record) == Prediction(None, "Lena")
    assert prediction_from_answer("#0", record) == Prediction(None, None)


def test_table_and_document_scores() -> None:
    records = [
        {"id": "a", "context_id": "t", "gold": ["x", "y"]},
        {"id": "b", "context_id": "u", "gold": ["z"]},
    ]
    assert tables_scores({"a": "y, x"}, records)["denotation_accuracy"]["value"] == 0.5
    scores = qa_scores({"a": "x", "b": "the z z"}, records)
    assert (scores["exact_match"]["value"], scores["f1"]["value"]) == (0.5, pytest.approx(5 / 6, abs=1e-6))


@pytest.mark.parametrize(
    ("target", "reply", "both"), [(14, 26, 9), (27, 34, 22), (147, 92, 82), (165, 144, 141)]
)
def test_the_table_of_the_paper_comes_out_of_its_counts(target: int, reply: int, both: int) -> None:
    # JORA's table 2: 170 comments, of which a system names the right author, post, and both so often.
    rows = [row(f"r{i}", f"t{i}", "3") for i in range(170)]
    named = [("3", "Marta")] * both
    named += [("2", "Marta")] * (target - both) + [("3", "Lena")] * (reply - both)
    answers = {f"r{i}": Prediction(*answer) for i, answer in enumerate(named)}
    found = directionality({"m": answers}, rows, resamples=50)["systems"]["m"]
    values = [found[name]["value"] for name in ("target@1", "reply@1", "joint", "p(reply|target)")]
    assert values == [round(v, 6) for v in (target / 170, reply / 170, both / 170, both / target)]
    assert (found["target@1"]["n"], found["p(reply|target)"]["n"]) == (170, target)


def qa_record(key: str, gold: list[str], **fields: Any) -> dict[str, Any]:
    shown = templates.qa_input([("Tea", "Tea is hot. It is brewed."), ("Ice", "Ice is cold.")], "What?")
    base = {"id": key, "context_id": key, "gold": gold, "input": shown}
    return base | {"context_ids": ["d1", "d2"], "oracle_ids": ["d2"]} | fields


def test_questions_without_an_answer_are_scored_as_in_squad_2() -> None:
    nothing = templates.NO_DOCUMENT
    records = [qa_record("a", ["hot tea"]), qa_record("b", ["ice"]), qa_record("c", [nothing])]
    records += [qa_record("d", [nothing]), qa_record("e", [nothing])]
    answers = {"a": "tea", "b": nothing, "c": f"{nothing.upper()}.", "d": "not in the tea"}  # e has no answer
    values = {name: (score["value"], score["n"]) for name, score in qa_scores(answers, records).items()}
    assert values == {
        "exact_match": (0.2, 5),
        # `tea` has 2/3 of `hot tea`. A wrong answer to c or d gets nothing, whatever words it shares.
        "f1": (pytest.approx((2 / 3 + 1) / 5, abs=1e-6), 5),
        "has_answer_exact_match": (0, 2),
        "has_answer_f1": (pytest.approx(1 / 3, abs=1e-6), 2),
        "no_answer_accuracy": (pytest.approx(1 / 3, abs=1e-6), 3),
    }


def test_scripts_without_blanks_have_measures_of_their_own() -> None:
    records = [qa_record("a", ["北京"]), qa_record("b", ["tea"]), qa_record("c", ["上海"])]
    found = qa_scores({"a": "北京市。", "b": "tea", "c": "上海。"}, records)
    values = {name: (score["value"], score["n"]) for name, score in found.items()}
    third = pytest.approx(1 / 3, abs=1e-6)
    assert values == {
        "exact_match": (third, 3),
        "f1": (third, 3),
        "character_exact_match": (0.5, 2),
        "character_f1": (0.9, 2),  # 4/5 and 1
    }


def test_quotations_are_verbatim_and_from_a_right_document() -> None:
    def quoted(*spans: str) -> str:
        return "".join(f"##begin_quote## {span} ##end_quote## " for span in spans) + "##Answer: ice"

    records = [qa_record(key, ["ice"]) for key in "abc"]
    records.append(qa_record("d", ["ice"], context_ids=[], oracle_ids=[], input="Ice is cold."))
    answers = {
        "a": quoted("Ice is cold.", "Tea is hot."),  # right, and of the other document
        "b": quoted("ice is cold", ""),  # other letters, and nothing
        "c": "ice",
        "d": quoted("Ice is cold."),  # it is not known which documents this prompt has
    }
    found = qa_scores(answers, records)
    assert found["exact_match"]["value"] == 1
    assert (found["quotation_verbatim"]["value"], found["quotation_verbatim"]["n"]) == (3 / 5, 5)
    assert (found["quotation_precision"]["value"], found["quotation_precision"]["n"]) == (1 / 4, 4)
    assert "quotation_precision" not in qa_scores({"c": "ice"}, records)
