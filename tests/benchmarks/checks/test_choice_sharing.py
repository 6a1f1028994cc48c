"""The benchmark of constrained choice compares the same scores; nothing here looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]


@pytest.mark.slow
def test_all_ways_score_the_same_questions(tmp_path: Path) -> None:
    to = tmp_path / "out.json"
    words = ["--threads", "2", "--questions", "3", "--window", "60", "--choices", "3", "--rounds", "1"]
    script = HERE / "generation" / "choice_sharing.py"
    done = subprocess.run(
        [sys.executable, str(script), *words, "--tokens-per-batch", "512", "--json", to],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(to.read_text())
    assert set(written["ratios"]) == {
        f"shared/{side}, {what} time" for side in ("apart", "one by one") for what in ("wall", "processor")
    }
    slots = {result["side"]: result["slots"] for result in written["results"]}
    # Apart, each of six questions reads its 80 tokens; shared, two threads read 60 once.
    assert slots["apart"] == slots["one by one"] and slots["apart"] - slots["shared"] == 2 * 2 * 60
