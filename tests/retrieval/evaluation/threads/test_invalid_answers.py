"""Written answers that are no choice of their prompt."""

from __future__ import annotations

import pytest

from retrieval.evaluation.threads.invalid_answers import invalid_answers

CHOICES = ["#1 Ann", "#2 Bob B.", "None of these posts"]


@pytest.mark.parametrize(
    ("answer", "invalid"),
    [
        ("#1 Ann", 0), (" #1  ann.\nMore.", 0), ("#2 Bob B.", 0), ("#2 bob b", 0),
        ("None of these posts.", 0),
        ("#1 Bob B.", 1), ("#3 Ann", 1), ("Ann", 1), ("#1", 1), ("", 1), (None, 1),
        ("#1 Ann or #2 Bob", 1),
    ],
)  # fmt: skip
def test_answers(answer: str | None, invalid: int) -> None:
    record = {"id": "a", "context_id": "t", "choices": CHOICES}
    score = invalid_answers({"a": answer}, [record], seed=0, resamples=10)
    assert (score["value"], score["n"]) == (invalid, 1)
    assert invalid_answers({}, [record], seed=0, resamples=10)["value"] == 1
