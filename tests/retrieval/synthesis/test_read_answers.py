"""Answers of teachers are read as far as they can be: JSON, JSON in prose, JSON that was cut, no JSON."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from retrieval.synthesis.read_answers import is_refusal, kind_of, read_drafts, usable

ONE = '{"kind": "fact", "question": "Who?", "answer": "Ann", "quotes": ["Ann did."]}'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"questions": [{ONE}]}}',
        f"Here you are:\n```json\n[{ONE}]\n```\nAnything else?",
        ONE,
        f'{{"questions": [{ONE}, {{"kind": "fact", "quest',
        f'{{"questions": [{ONE}], "note": {{}}}}',
        ONE.replace('"quotes": ["Ann did."]', '"quote": "Ann did."'),
    ],
)
def test_a_question_is_found(text: str) -> None:
    (draft,) = read_drafts(text)
    assert (draft.kind, draft.question, draft.answer, draft.quotes) == ("fact", "Who?", "Ann", ("Ann did.",))


def test_a_question_with_its_answer_is_read_where_the_rest_was_cut() -> None:
    (draft,) = read_drafts(ONE[: ONE.index("did")])
    assert (draft.question, draft.answer, draft.quotes) == ("Who?", "Ann", ())
    # An answer that was cut is none, and of a question without an answer nobody knows what it asks.
    assert read_drafts(ONE[: ONE.index("nn")]) == []
    assert read_drafts('{"question": "How many?", "answer": 1') == []
    (draft,) = read_drafts('{"question": "How many?", "answer": 1, "quotes": ["a')
    assert draft.answer == "1"


@pytest.mark.parametrize(
    "text", ["", "I am sorry", "[1, 2", '{"question": null}', '{"question": ["a"]}', "{" * 5000]
)
def test_nothing_is_found(text: str) -> None:
    assert read_drafts(text) == [] and not usable(text, ["fact"])


@given(strategies.text(alphabet='{}[]":,questionab1\\ ', max_size=60))
def test_no_text_is_an_error(text: str) -> None:
    assert all(draft.question for draft in read_drafts(text))


def test_numbers_are_answers_and_half_characters_are_dropped() -> None:
    (draft,) = read_drafts('{"question": "How many \\ud800?", "answer": 12}')
    assert draft.question == "How many ?" and draft.answer == "12"


def test_the_kind() -> None:
    (draft,) = read_drafts('{"kind": "How-To", "question": "How?"}')
    assert kind_of(draft, ["fact", "how_to"]) == "how_to"
    (draft,) = read_drafts('{"kind": "trivia", "question": "How?"}')
    assert kind_of(draft, ["fact", "how_to"]) == "" and kind_of(draft, ["fact"]) == "fact"


def test_refusals() -> None:
    assert is_refusal("I'm sorry, but I can't help with that.") and is_refusal("As an AI, I do not")
    assert not is_refusal('{"questions": []}')
