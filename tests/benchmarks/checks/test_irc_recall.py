"""Recall on real IRC logs, by the script that prints the table in docs/benchmarks.md."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from scipy import stats

BENCHMARKS = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("search.irc_recall")


def test_recall_is_the_share_of_parents_found(script: ModuleType) -> None:
    rows = [
        {"context_id": "a", "gold_ids": ["1", "2"], "fused": ["3", "1"], "bm25": ["2"]},
        {"context_id": "b", "gold_ids": ["5"], "fused": ["5"], "bm25": []},
    ]
    fused, bm25 = script.measure("fused without bm25", rows), script.measure("bm25", rows)
    assert fused["recall@1"]["value"] == 0.5
    assert (fused["recall@5"]["value"], fused["mrr"]["value"]) == (0.75, 0.75)
    assert (bm25["recall@1"]["value"], bm25["mrr"]["value"], bm25["n"], bm25["logs"]) == (0.25, 0.5, 2, 2)


def test_intervals_are_those_of_the_evaluation(script: ModuleType) -> None:
    """Percentiles of resamples would be no interval at all where every reply is found."""
    found = [{"context_id": str(log), "gold_ids": ["1"], "bm25": ["1"]} for log in range(12)]
    recall = script.measure("bm25", found)["recall@1"]
    # Wilson's interval of 12 of 12, with Student's t of 11 degrees of freedom: 12 / (12 + t²).
    t = float(stats.t.ppf(0.975, 11))
    assert (recall["value"], recall["high"]) == (1.0, 1.0)
    assert recall["low"] == pytest.approx(12 / (12 + t * t), abs=1e-6)
    one_log = script.measure("bm25", [found[0], found[0]])
    assert one_log["recall@1"]["low"] is None
    assert script.table_row(one_log)["recall@1"] == "1.000 (one log)"


def test_links_are_counted_with_starts_and_lines_of_the_system(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.annotation.txt").write_text("3 1 -\n3 2 -\n4 4 -\n2 5 -\n6 6 -\n")
    predicted = {"dev/a": {"3": ["2", "1"], "4": ["3"], "5": ["2", "4"]}}
    # Line 6 has no prediction, so it counts as a start, which is right.
    one = script.link_scores(tmp_path, predicted, 1)
    assert one == pytest.approx({"precision": 3 / 4, "recall": 3 / 5, "f1": 6 / 9})
    two = script.link_scores(tmp_path, predicted, 2)
    assert two == pytest.approx({"precision": 4 / 6, "recall": 4 / 5, "f1": 8 / 11})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_learned_fusion_reaches_its_goals(script: ModuleType, shared: Path) -> None:
    data = shared / "data" / "irc"
    learned = script.learn(script.recipe_task(data), None, data / "dev")
    ratios = learned.ratios()
    print(learned.summary(), ratios, learned.measures)
    assert ratios["reply@1"] >= 0.74
    assert max(ratios["link_f1"], ratios["link_f1_second_parents"]) >= 0.75
    assert script.measure("learned", learned.rankings)["recall@5"]["value"] >= 0.95


@pytest.mark.slow
def test_the_recipe_finds_what_irc_messages_answer(script: ModuleType, shared: Path) -> None:
    rankings = script.rank(script.recipe_task(shared / "data" / "irc"), None)
    fused, bm25 = script.measure("fused", rankings), script.measure("bm25", rankings)
    assert fused["n"] > 2000
    for depth, least in ((1, 0.54), (5, 0.85), (10, 0.93)):
        assert fused[f"recall@{depth}"]["value"] >= least
        assert bm25[f"recall@{depth}"]["value"] < least - 0.3
