"""Tolerant reading of post labels."""

from __future__ import annotations

import pytest

from retrieval.prompts.answer_matching import parse_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#3 Marta", ("Marta", 3)),
        ("  #3   Marta. ", ("Marta", 3)),
        ("#12Marta", ("Marta", 12)),
        ("# 3 Marta  Maria\nmore", ("Marta Maria", 3)),
        ("#7 c#fan", ("c#fan", 7)),
        ("#4", (None, 4)),
        ("Marta", ("Marta", None)),
        ("", (None, None)),
        ("\n\n", (None, None)),
        ("#x Marta", ("#x Marta", None)),
        ("#99999999999999 Marta", ("#99999999999999 Marta", None)),
    ],
)
def test_parse_answer(text: str, expected: tuple[str | None, int | None]) -> None:
    assert parse_answer(text) == expected
