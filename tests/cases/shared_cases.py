"""The cases of the folder of shared corpora, each run by its own runner through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SHARED

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600


def names(letters: str) -> list[str]:
    """The cases whose names begin with one of the letters; one without a name where there are none."""
    found = sorted(path.parent.name for path in (SHARED / "cases").glob("*/case.yaml"))
    return [name for name in found if name[0] in letters] or [""]


def run_case(name: str) -> None:
    """Runs one case; it fails with what the runner says."""
    if not name:
        pytest.skip(f"no cases at {SHARED / 'cases'} (set JORA_SHARED)")
    runner = SHARED / "cases" / "run_cases.py"
    command = [sys.executable, str(runner), "--jora", str(Path(sys.executable).with_name("jora"))]
    done = subprocess.run(
        [*command, "--repo", str(ROOT), name],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        # The command that is installed may be that of another checkout.
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 0 failed" in done.stdout
