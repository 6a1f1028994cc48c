"""The tables of the page on reliability are those that the tests check."""

from __future__ import annotations

from pathlib import Path

from tests.flows.changes import table

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def test_table_of_changes() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "print it with `python -m tests.flows.changes`"
