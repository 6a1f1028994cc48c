"""Line breaks stay, noise goes, values print as they are, and sentences end where they end."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest

from retrieval.prompts.answer_styles import supporting_sentence
from retrieval.prompts.token_budget import fit
from retrieval.text.normalize import answer_text, fold, keep_lines, one_paragraph
from retrieval.text.sentences import sentences
from retrieval.text.values import printed, printed_id


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("  one   line\t here \n", "one line here"),
        ("def f():\r\n    return 1  \r\n", "def f():\n    return 1"),
        ("\n\n  - a\n  - b\n\n\n\n| x | y |\n", "  - a\n  - b\n\n| x | y |"),
        ("a\x00b\nc\x07", "ab\nc"),
        ("page one\x0cpage two", "page one\npage two"),
        ("a\u2028b", "a\nb"),
        (" \n \n", ""),
    ],
)
def test_lines_are_kept(text: str, kept: str) -> None:
    assert keep_lines(text) == kept
    assert fold(kept) == fold(text)


def test_answers_and_questions_are_parts_of_a_prompt() -> None:
    assert answer_text("    if x:\n        y\n") == "if x:\n    y"
    assert one_paragraph("a\n\nb\n\n\nc") == "a\nb\nc"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12"),
        (2.5, "2.5"),
        (True, "true"),
        (date(2024, 5, 1), "2024-05-01"),
        (datetime(2024, 5, 1, 12, 30), "2024-05-01 12:30:00"),
        (Decimal("12.50"), "12.50"),
        (float("nan"), None),
        ({}, None),
        (10**50, None),
    ],
)
def test_values_are_what_they_print(value: Any, text: str | None) -> None:
    assert printed(value) == text


def test_whole_numbers_are_one_id() -> None:
    assert printed_id(7.0) == printed_id(7) == printed_id(Decimal("7.0")) == "7"


def test_a_wrapped_line_ends_no_sentence() -> None:
    wrapped = "The kettle was bought in the year after the war and\nhas boiled since."
    text = f"{wrapped} It is red.\n- one item\n- another item"
    assert sentences(text) == [
        wrapped,
        "It is red.",
        "- one item",
        "- another item",
    ]
    assert sentences("これは水です。「はい。」それは火です。") == [
        "これは水です。",
        "「はい。」",
        "それは火です。",
    ]


@pytest.mark.parametrize("mark", [".", "!", "?", '."', ".)", "؟", "।"])
@pytest.mark.parametrize("following", ["It has boiled since.", "and it boils.", "2 of them boil."])
def test_a_mark_at_the_end_of_a_long_line_ends_the_sentence(mark: str, following: str) -> None:
    first = f"The kettle was bought in the year after the war{mark}"
    assert sentences(f"{first}\n{following}") == [first, following]
    assert sentences(f"Old.\n{first}  \n  {following} New.") == ["Old.", first, following, "New."]


def test_an_answer_over_several_lines_is_quoted_whole() -> None:
    text = "Intro.\n\ndef double(x):\n    return 2 * x\n\nThe end."
    quote = supporting_sentence([text], ["def double(x):\n    return 2 * x"], "how?")
    assert quote == "def double(x):\n    return 2 * x" and quote in text


def test_a_budget_keeps_lines() -> None:
    text = "One two three.\nFour five six.\nSeven eight nine."
    fitted = fit([text], 6, lambda t: len(t.split()), [0], lambda t: "Four five six.")
    assert fitted.texts == ("One two three.\nFour five six.",)
    assert fit([text], 4, lambda t: len(t.split())).texts == ("One two three.\nFour",)
    assert fit(["東京は日本の首都です" * 20], 10, len).texts == ("東京は日本の首都です",)
