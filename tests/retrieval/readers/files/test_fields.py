"""What stands for a missing value, in a text and in an id."""

from __future__ import annotations

import pytest

from retrieval.readers.files.fields import content_of, is_missing, reference_of
from retrieval.text.values import is_empty


@pytest.mark.parametrize("value", [None, "", "  \n", float("nan")])
def test_empty_values_are_missing_everywhere(value: object) -> None:
    assert is_empty(value) and is_missing(value)
    assert content_of(value, "text", "f:1") == reference_of(value, "parent", "f:1") == ""


@pytest.mark.parametrize("word", ["none", "None", " NULL ", "nan", "<NA>", "\\N"])
def test_a_word_for_no_value_is_an_answer_but_no_id(word: str) -> None:
    assert not is_empty(word) and content_of(word, "text", "f:1") == word
    assert is_missing(word) and reference_of(word, "parent", "f:1") == ""


@pytest.mark.parametrize("value", ["nobody", "0", 0, 7, "none of these, as it is a long text"])
def test_other_values_are_there(value: object) -> None:
    assert not is_empty(value) and not is_missing(value)
