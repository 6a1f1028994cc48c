"""Choices by log-likelihood for a character."""

from __future__ import annotations

import pytest

from retrieval.evaluation.measures.choice_likelihoods import (
    normalised_likelihoods,
    with_normalised_choices,
)


def test_characters_are_counted_not_bytes_or_tokens() -> None:
    # One character each for the letters with marks and the ideographs; a blank counts.
    assert normalised_likelihoods(["Zoë", " a", "李雷", ""], [-6.0, -1.0, -3.0, -2.0]) == [
        -2.0,
        -0.5,
        -1.5,
        -2.0,
    ]
    with pytest.raises(ValueError, match="zip"):
        normalised_likelihoods(["a"], [-1.0, -2.0])


def test_the_best_for_a_character_of_each_row() -> None:
    records = [{"id": "a", "choices": ["#1 Al", "#2 Alexandra"]}, {"id": "b", "choices": ["x", "y"]}]
    rows = [
        # Sums: the short one. For a character: -0.8 against -0.5.
        {"id": "a", "system": "base", "choice": "#1 Al", "choice_logprobs": [-4.0, -6.0]},
        {"id": "b", "system": "base", "choice": "x", "choice_logprobs": [-1.0, -1.0]},
        {"id": "b", "system": "written", "choice": "", "choice_logprobs": []},
        {"id": "b", "system": "old"},
    ]
    found = with_normalised_choices(rows, records)
    assert [row["normalised_choice"] for row in found] == ["#2 Alexandra", "x", None, None]
    assert [{k: v for k, v in row.items() if k != "normalised_choice"} for row in found] == rows
