"""The BM25 benchmark runs at a small size with the peers that are installed, and writes the promised form."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]


def test_sides_agree_and_ratios_are_written(tmp_path: Path) -> None:
    to = tmp_path / "out.json"
    sides = ["ours", "rank_bm25", "tantivy"]  # bm25s would compile for a quarter of a minute
    words = ["--sizes", "12000", "--turns", "2", "--turn", "0.02", "--sides", *sides, "--json", str(to)]
    done = subprocess.run(
        [sys.executable, str(HERE / "search" / "bm25.py"), *words],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ours and rank_bm25 agree on 5 queries, places and scores" in done.stdout
    written = json.loads(to.read_text())
    assert set(written) == {"machine", "settings", "results", "ratios"}
    if find_spec("tantivy"):
        assert set(written["ratios"]) == {"rank_bm25@12k", "tantivy@12k", "tantivy_batch@12k"}
    else:
        assert set(written["ratios"]) == {"rank_bm25@12k"}
        assert "not measured: tantivy is not installed" in done.stdout
    assert all(value > 0 for value in written["ratios"].values())
    ours = written["results"][0]
    assert ours["side"] == "ours" and ours["documents"] == 12_000 and ours["words"] > 12_000 * 6
    assert min(ours[key] for key in ("build_seconds", "load_seconds", "peak_above_imports_bytes")) > 0


def test_sides_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    script = importlib.import_module("search.bm25")

    class Side:
        def __init__(self, name: str, scores: list[list[float]]) -> None:
            self.name, self.scores = name, scores

        def ask(self, do: str, count: int) -> dict[str, list]:
            return {"places": [[1, 0]], "scores": self.scores}

    script.check([Side("ours", [[2.0, 1.0]]), Side("rank_bm25", [[2.0, 1.000001]]), Side("bm25s", [[]])])
    with pytest.raises(SystemExit, match="the sides disagree"):
        script.check([Side("ours", [[2.0, 1.0]]), Side("rank_bm25", [[2.0, 1.001]])])


def test_sizes_have_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    script = importlib.import_module("search.bm25")
    assert [script.size_name(n) for n in (500, 10_000, 1_000_000)] == ["500", "10k", "1M"]
