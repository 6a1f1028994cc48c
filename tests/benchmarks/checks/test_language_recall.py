"""Questions in five scripts find their passages about as often as in English."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("search.language_recall")


def test_every_language_reaches_nine_tenths_of_english(script, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["language_recall.py", "--json", str(tmp_path / "out.json")])
    script.main()
    written = json.loads((tmp_path / "out.json").read_text())
    assert {row["language"] for row in written["results"]} == set(script.NAMES.values())
    assert all(ratio >= 0.9 for ratio in written["ratios"].values()), written["ratios"]
    plain = {row["language"]: row["plain words"] for row in written["results"]}
    assert plain["chinese"] < 0.5, "the rule of before found no Chinese words"
