"""The benchmark of reading reads every format whole, compares two checkouts, and writes the promised form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def test_reading(tmp_path: Path) -> None:
    words = ["--rows", "60", "--turns", "1", "--against", str(HERE.parents[1])]
    done = subprocess.run(
        [sys.executable, str(HERE / "readers" / "reading.py"), *words, "--json", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    found = {result["format"]: result["rows"] for result in written["results"]}
    assert found.pop("mbox") == found.pop("tables_csv") == 6
    assert len(found) >= 9 and set(found.values()) == {60}
    assert set(written["ratios"]) == {result["format"] for result in written["results"]}
    for result in written["results"]:
        assert len(result["this"]["seconds"]) == len(result["other"]["seconds"]) == 1
    assert "rows/s" in done.stdout and "this/other" in done.stdout
