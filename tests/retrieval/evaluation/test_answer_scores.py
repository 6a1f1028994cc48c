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
    }
    assert values["previous_post"] == {
        "target@1": 0.5,
        "reply@1": 0.25,
        "joint": 0.25,
        "p(reply|target)": 0.5,
    }
    assert values["bm25"] == {"target@1": 0.25, "reply@1": 0.25, "joint": 0.25, "p(reply|target)": 1.0}
    assert values["base"] == {"target@1": 0.5, "reply@1": 0.5, "joint": 0.25, "p(reply|target)": 0.5}
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
