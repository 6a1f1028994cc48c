"""Facts that quotations cite, and HotpotQA's scores of each question from them."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.evaluation.measures.cited_facts import cited_facts, joint_values
from retrieval.text.supporting_facts import (
    ShownSentence,
    as_texts,
    facts_of,
    sentence_places,
    shown_sentences,
)

PROMPT = (
    "[1] A. One is red. Two is blue. It is.\n[2] B. It is. Five is green.\n\nQuestion: Is Two is blue. true?"
)
TEXTS = {"A": ["One is red.", "Two is blue.", "It is."], "B": ["It is.", "Five is green."]}


def _sentences() -> list[ShownSentence]:
    found = []
    for document, sentences in TEXTS.items():
        begin = PROMPT.index(f"{document}. ") + 3
        places = sentence_places(sentences, PROMPT[begin:])
        found += [ShownSentence(document, n, begin + a, begin + b) for n, (a, b) in enumerate(places)]
    return found


def _quoted(*spans: str) -> str:
    return " ".join(f"##begin_quote## {span} ##end_quote##" for span in spans) + " ##Answer: x"


@pytest.mark.parametrize(
    ("spans", "facts"),
    [
        ((), set()),
        (("One is red.",), {("A", 0)}),
        (("is red",), {("A", 0)}),  # a part of a sentence
        (("One is red. Two is blue.",), {("A", 0), ("A", 1)}),
        (("red. Two",), {("A", 0), ("A", 1)}),  # of each a part
        (("One is red.", "One is red.", "red"), {("A", 0)}),  # sets
        (("It is.",), {("A", 2)}),  # the first of two equal sentences
        (("It is. Five",), {("B", 0), ("B", 1)}),  # only here with what follows
        (("Is Two is blue. true?",), {("quoted: Is Two is blue. true?", -1)}),  # the question alone
        (("Two is blue. true",), {("quoted: Two is blue. true", -1)}),
        (("Six is black.",), {("quoted: Six is black.", -1)}),  # invented
        (("Six.", "Seven.", "Six."), {("quoted: Six.", -1), ("quoted: Seven.", -1)}),
        (("one is red.",), {("quoted: one is red.", -1)}),  # not verbatim
        (("",), {("quoted: ", -1)}),
        (("One is red.", "Six."), {("A", 0), ("quoted: Six.", -1)}),
    ],
)
def test_what_quotations_cite(spans: tuple[str, ...], facts: set[tuple[str, int]]) -> None:
    assert cited_facts(_quoted(*spans), PROMPT, _sentences()) == facts


def test_joint_scores_of_single_questions() -> None:
    one, two, wrong = ("A", 0), ("B", 1), ("C", 0)
    rows = [
        # said, accepted, cited, right; exact match and F1 of answer, of facts, and joint.
        ("Oslo", ["Oslo"], {one, two}, {one, two}, (1, 1, 1, 1, 1, 1)),
        ("Oslo", ["Oslo"], {one}, {one, two}, (1, 1, 0, 2 / 3, 0, 2 / 3)),  # joint P 1, R 1/2
        # Answer P 1/2, R 1; facts P 1/2, R 1/2: joint P 1/4, R 1/2.
        ("Old Oslo", ["Oslo"], {one, wrong}, {one, two}, (0, 2 / 3, 0, 1 / 2, 0, 1 / 3)),
        ("Rome", ["Oslo"], {one, two}, {one, two}, (0, 0, 1, 1, 0, 0)),
        ("yes, it is", ["yes"], {one}, {one}, (0, 0, 1, 1, 0, 0)),
        ("Oslo", ["Rome", "Oslo"], set(), {one}, (1, 1, 0, 0, 0, 0)),  # the best accepted answer, no facts
        (None, ["Oslo"], {one}, {one}, (0, 0, 0, 0, 0, 0)),  # no answer at all
    ]
    found = joint_values(
        [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows]
    )
    np.testing.assert_allclose(np.array(list(found.values())).T, [row[4] for row in rows])
    assert list(joint_values([], [], [], [])) == list(found)


def test_places_follow_the_order_of_the_sentences() -> None:
    assert sentence_places(["a.", "b.", "a."], "a. b. a.") == ((0, 2), (3, 5), (6, 8))
    assert sentence_places(["a.", "cut.", " c. ", " "], "a. c.") == ((0, 2), (-1, -1), (3, 5), (-1, -1))


def test_columns_of_texts_keep_every_sign() -> None:
    facts = {('Zoë "the" ship#1f', 3), ("李雷", 0)}
    assert facts_of(as_texts(facts)) == facts
    shown = [ShownSentence("a\tb", 1, 0, 5)]
    assert shown_sentences(as_texts(shown)) == shown
