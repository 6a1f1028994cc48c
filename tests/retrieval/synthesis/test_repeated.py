"""Repeated questions are found as a comparison of all pairs finds them; so are those of several documents."""

from __future__ import annotations

import random

from retrieval.corpus.types import Document
from retrieval.synthesis.repeated import answered_elsewhere, repeated
from retrieval.text.words import tokenize


def by_all_pairs(questions: list[str], threshold: float) -> list[bool]:
    kept: list[set[str]] = []
    found = []
    for question in questions:
        words = set(tokenize(question))
        near = any(len(words & other) / len(words | other) >= threshold for other in kept)
        found.append(near)
        if not near:
            kept.append(words)
    return found


def test_equal_to_the_comparison_of_all_pairs() -> None:
    draws = random.Random(7)
    words = [f"w{'x' * (n % 7)}{n}" for n in range(25)]
    questions = [" ".join(draws.sample(words, draws.randint(2, 6))) for _ in range(600)]
    for threshold in (0.5, 0.6, 0.8):
        found = [bool(reason) for reason in repeated(questions, threshold)]
        assert found == by_all_pairs(questions, threshold)
        assert any(found) and not all(found)


def test_equal_words_are_repeated_even_where_the_threshold_is_off() -> None:
    assert list(repeated(["Who is Ann?", "who is  ann", "Who was Ann?"], "off")) == [
        "",
        "question_repeated",
        "",
    ]


def test_a_sentence_of_another_document_answers_too() -> None:
    chunks = [
        Document("a@0-9", "", "It opens at seven. Free for all.", parent="a"),
        Document("a@9-20", "", "It opens at seven.", parent="a"),
        Document("b", "", "Here too: cheap.\nFREE for all!"),
    ]
    found = answered_elsewhere(["It opens at seven.", "Free for all.", ""], ["a", "a", "a"], chunks)
    assert found == [False, True, False]
