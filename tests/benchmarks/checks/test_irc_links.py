"""The rules that docs/evaluation.md compares with, on hand-written and on real logs."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1]
PAGE = BENCHMARKS.parents[1] / "docs" / "evaluation.md"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("evaluation.irc_links")


def test_rules_by_hand(script: ModuleType, tmp_path: Path) -> None:
    said = [
        "<ann> hello",
        "=== bob joined",
        "<bob> hi",
        "<cat> ann: how are you",
        "<bob> so",
        "<cat> so what",
    ]
    lines = [line if line.startswith("=") else f"[10:00] {line}" for line in said]
    (tmp_path / "a.ascii.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.annotation.txt").write_text("".join(f"{n} {n} -\n" for n in range(1, 6)))
    ((name, gold, posts),) = script.annotated(tmp_path)
    assert name == "a" and len(gold) == 5 and len(posts) == 5
    # Line 1 is of the system, and lines 2 and 5 answer the last message that is not.
    assert script.predicted(script.previous_post, gold, posts) == {(1, 1), (2, 0), (3, 2), (4, 3), (5, 4)}
    # Bob speaks for the first time in line 2, and line 3 names Ann.
    rule = script.addressed_then_previous
    assert script.predicted(rule, gold, posts) == {(1, 1), (2, 2), (3, 0), (4, 3), (5, 4)}
    assert script.measure("previous", script.previous_post, tmp_path)["Link P"] == 1 / 5


@pytest.mark.corpus
def test_the_page_shows_what_the_script_measures(script: ModuleType, shared: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, rule in script.RULES.items():
        found = script.measure(name, rule, shared / "data" / "irc" / "dev")
        cells = [f"{100 * value:.1f}" for key, value in found.items() if key != "Rule"]
        assert f"| {name} | {' | '.join(cells)} |" in page
