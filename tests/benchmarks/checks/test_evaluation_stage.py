"""The benchmark of the evaluation runs the real stage on the sample; nothing here looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_stage_runs_twice_with_three_models(tmp_path: Path) -> None:
    to = tmp_path / "out.json"
    script = HERE / "evaluation" / "evaluation_stage.py"
    done = subprocess.run(
        [sys.executable, str(script), "--records", "30", "--json", str(to)],
        capture_output=True,
        text=True,
        timeout=1700,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = json.loads(to.read_text())["results"]
    for result in (first, second):
        assert result["systems"] == ["base", "phase1", "both_phases"] and 0 < result["records"] <= 30
        assert result["processor_seconds"] == result["own_seconds"] + result["child_seconds"]
        # A child process that is not counted would look like a quick evaluation.
        assert result["child_seconds"] > 1
    assert (first["run"], second["run"]) == ("first", "second")
