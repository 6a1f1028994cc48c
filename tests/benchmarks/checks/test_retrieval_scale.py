"""The benchmark of building records runs, its backends agree, and what it writes has the promised form."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def test_retrieval_scale(tmp_path: Path) -> None:
    backends = (
        ["single", "threads"] if importlib.util.find_spec("distributed") is None else ["single", "dask"]
    )
    words = ["--documents", "700", "--questions", "90", "--backends", *backends, "--folder", str(tmp_path)]
    script = HERE / "search" / "retrieval_scale.py"
    done = subprocess.run(
        [sys.executable, str(script), *words, "--json", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written) == {"machine", "settings", "results", "ratios"}
    assert set(written["ratios"]) == {f"{backends[1]}/single"}
    for result, backend in zip(written["results"], backends, strict=True):
        assert result["backend"] == backend and 60 < result["records"] <= 90
        assert result["seconds"] > 0 and result["peak_bytes"] > 20_000_000
        assert {"qa: read documents", "qa: index", "qa: records"} <= set(result["steps"])
    assert "records/s" in done.stdout
    assert "qa: records: " in done.stderr and "/s" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
