"""Coverage of the evaluation's intervals, by the script that prints the table in docs/evaluation.md."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1]


def test_intervals_hold_the_truth_and_plain_percentiles_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("evaluation.interval_coverage")
    cases = {case.name: case for case in script.CASES}
    score, difference = cases["score 0.50"], cases["difference 0.00, of 0.10 and 0.10"]
    for case in (score, difference):
        found = script.coverage(case, contexts=12, repetitions=400)
        print(found)
        # 95 % of 400 repetitions, with four standard errors.
        assert found["coverage"] == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 400) ** 0.5)
        assert found["coverage"] > found["plain_percentiles"]
    assert script.coverage(score, 12, 400)["plain_percentiles"] < 0.93


@pytest.mark.slow
def test_coverage_is_between_93_and_97_percent_from_10_contexts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("evaluation.interval_coverage")
    for case in script.CASES:
        for contexts in (10, 20, 50, 200):
            found = script.coverage(case, contexts, 2000)
            print(found)
            # Where only a few records are right, or differ, the interval is too wide (docs/evaluation.md).
            rarest = min(case.right, 1 - case.right, *([case.only_other] if case.only_other else []))
            few = rarest * script.RECORDS * contexts < 12 or (case.seeds > 1 and contexts < 20)
            # Half a point is the counting error.
            assert 0.925 <= found["coverage"] <= (1.0 if few else 0.975)
