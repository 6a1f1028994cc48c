"""The comparison of document libraries: its files can be read, and its score tells what is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "readers/document_libraries.py"


def test_our_readers_are_scored(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", str(out)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    results = {row["kind"]: row for row in json.loads(out.read_text())["results"]}
    assert sum(row["of"]["facts"] for row in results.values()) == 16
    for kind in (".html", ".docx", ".epub"):
        assert results[kind]["counts"] == {**results[kind]["of"], "noise": 0}
    # Columns that a PDF draws line by line stay mixed (docs/data.md).
    assert results[".pdf"]["counts"] == {"facts": 4, "lines": 2, "noise": 0}
