"""Recall on the sample's threads, by the script that prints the table in docs/benchmarks.md."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_learned_fusion_learns_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("search.sample_recall")
    found, learned = script.recalls(script.recipe_config())
    print(found, learned)
    by_leg = {result["leg"]: result["recall@1"] for result in found}
    assert by_leg["learned"]["value"] >= 0.6
    assert by_leg["learned"]["low"] > max(by_leg["bm25"]["high"], by_leg["fused"]["high"])
    assert learned["test"]["messages"] > 2000
