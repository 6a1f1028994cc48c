"""HotpotQA's scores on hand-written pairs. Every value was worked out from the published rules."""

from __future__ import annotations

import pytest

from retrieval.evaluation.measures.hotpotqa import answer_score, hotpotqa_scores, supporting_fact_score

#: (prediction, right answer, exact match, precision, recall, F1)
PAIRS = [
    # `yes`, `no` and `noanswer` are right as a whole or not at all.
    ("yes", "yes", True, 1, 1, 1),
    ("Yes.", "yes", True, 1, 1, 1),
    ("YES", "yes", True, 1, 1, 1),
    ("yes\n", "yes", True, 1, 1, 1),
    ('"Yes"', "yes", True, 1, 1, 1),
    ("a yes", "yes", True, 1, 1, 1),
    ("the no", "no", True, 1, 1, 1),
    ("an no", "a no", True, 1, 1, 1),
    ("no", "No", True, 1, 1, 1),
    ("noanswer", "noanswer", True, 1, 1, 1),
    ("NoAnswer", "noanswer", True, 1, 1, 1),
    ("no-answer", "noanswer", True, 1, 1, 1),  # the sign goes without a blank
    ("yes, it is", "yes", False, 0, 0, 0),
    ("yes", "yes, it is", False, 0, 0, 0),
    ("yes yes", "yes", False, 0, 0, 0),
    ("“Yes”", "yes", False, 0, 0, 0),  # typographic quotes stay
    ("yes", "“yes”", False, 0, 0, 0),
    ("no", "yes", False, 0, 0, 0),
    ("No way", "no", False, 0, 0, 0),
    ("neither, no", "no", False, 0, 0, 0),
    ("no country for old men", "no", False, 0, 0, 0),
    ("not", "no", False, 0, 0, 0),
    ("north", "no", False, 0, 0, 0),
    ("both", "yes", False, 0, 0, 0),
    ("", "yes", False, 0, 0, 0),
    ("no answer", "noanswer", False, 0, 0, 0),
    ("noanswer", "Paris", False, 0, 0, 0),
    ("Paris", "noanswer", False, 0, 0, 0),
    # Within a longer answer they are words like others.
    ("no answer", "no answer", True, 1, 1, 1),
    ("no answer", "answer", False, 1 / 2, 1, 2 / 3),
    ("yes no", "no yes", False, 1, 1, 1),
    ("yes-no", "yesno", True, 1, 1, 1),
    ("the yes men", "yes men", True, 1, 1, 1),
    ("yes men", "men", False, 1 / 2, 1, 2 / 3),
    ("no country", "no country for old men", False, 1, 2 / 5, 4 / 7),
    # Nothing is left of a text: exact if of both, but F1 is 0.
    ("", "", True, 0, 0, 0),
    ("the", "a", True, 0, 0, 0),
    ("", "Paris", False, 0, 0, 0),
    ("!", "Paris", False, 0, 0, 0),
    # Everything else is as in SQuAD 1.1.
    ("Marie Curie", "marie curie", True, 1, 1, 1),
    ("Curie", "Marie Curie", False, 1, 1 / 2, 2 / 3),
    ("Marie Skłodowska Curie", "Marie Curie", False, 2 / 3, 1, 4 / 5),
    ("Marie Sklodowska Curie", "Marie Skłodowska Curie", False, 2 / 3, 2 / 3, 2 / 3),
    ("from 1986 to 2013", "1986 to 2013", False, 3 / 4, 1, 6 / 7),
    ("1986-2013", "1986 to 2013", False, 0, 0, 0),  # `19862013`
    ("1986–2013", "1986–2013", True, 1, 1, 1),
    ("the Animorphs", "Animorphs", True, 1, 1, 1),
    ("New York", "Greenwich Village, New York City", False, 1, 2 / 5, 4 / 7),
    ("Terry Richardson and Annie Morton", "Terry Richardson", False, 2 / 5, 1, 4 / 7),
    ("Terry", "Annie", False, 0, 0, 0),
    ("9,984", "9984", True, 1, 1, 1),
    ("1,5", "15", True, 1, 1, 1),
    ("3,677 seated", "3677", False, 1 / 2, 1, 2 / 3),
    ("U.S.", "US", True, 1, 1, 1),
    ("U S", "US", False, 0, 0, 0),
    ("e.g.", "eg", True, 1, 1, 1),
    ("Chief of Protocol", "chief of the protocol", True, 1, 1, 1),
    ("YG Entertainment.", "yg entertainment", True, 1, 1, 1),
    ("dog dog", "dog", False, 1 / 2, 1, 2 / 3),
    ("dog", "dog dog", False, 1, 1 / 2, 2 / 3),
    ("a b", "b", True, 1, 1, 1),
    ("A.B.", "ab", True, 1, 1, 1),
    ("café", "cafe", False, 0, 0, 0),
]


def test_there_are_sixty_pairs() -> None:
    assert len({pair[:2] for pair in PAIRS}) >= 60


@pytest.mark.parametrize(("prediction", "gold", "exact", "precision", "recall", "f1"), PAIRS)
def test_pairs(prediction: str, gold: str, exact: bool, precision: float, recall: float, f1: float) -> None:
    found = answer_score(prediction, gold)
    assert found.exact is exact
    assert (found.overlap.precision, found.overlap.recall) == pytest.approx((precision, recall))
    assert found.overlap.f1 == pytest.approx(f1)


A0, A1, B0 = ("A", 0), ("A", 1), ("B", 0)


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "precision", "recall", "f1"),
    [
        ([A0, B0], [B0, A0], True, 1, 1, 1),
        ([A0, A0, B0], [A0, B0], True, 1, 1, 1),  # sets
        ([A0], [A0, B0], False, 1, 1 / 2, 2 / 3),
        ([A0, A1, B0], [A0, B0], False, 2 / 3, 1, 4 / 5),
        ([A1], [A0], False, 0, 0, 0),  # the right page is not the right sentence
        ([("a", 0)], [A0], False, 0, 0, 0),  # titles are compared as they are
        ([], [A0], False, 0, 0, 0),
        ([], [], True, 0, 0, 0),  # nothing wrong and nothing missed, but nothing to divide
    ],
)
def test_supporting_facts(
    predicted: list, gold: list, exact: bool, precision: float, recall: float, f1: float
) -> None:
    found = supporting_fact_score(predicted, gold)
    assert found.exact is exact
    assert (found.overlap.precision, found.overlap.recall) == pytest.approx((precision, recall))
    assert found.overlap.f1 == pytest.approx(f1)


def test_all_numbers_of_four_questions() -> None:
    gold = {
        "1": ("Marie Curie", [A0, B0]),
        "2": ("yes", [A0]),
        "3": ("Oslo", [B0]),
        "4": ("Rome", [A0]),
    }
    answers = {"1": "Curie", "2": "yes", "3": "Oslo"}  # the fourth has no answer
    facts = {"1": [A0], "2": [A0, A1], "4": [A0]}  # the third has no facts
    found = hotpotqa_scores(answers, facts, gold)
    assert found == pytest.approx(
        {
            "em": 2 / 4,
            "prec": 3 / 4,
            "recall": (1 / 2 + 1 + 1) / 4,
            "f1": (2 / 3 + 1 + 1) / 4,
            "sp_em": 1 / 4,
            "sp_prec": (1 + 1 / 2 + 1) / 4,
            "sp_recall": (1 / 2 + 1 + 1) / 4,
            "sp_f1": (2 / 3 + 2 / 3 + 1) / 4,
            # Joint: question 1 has P 1·1 and R 1/2·1/2, so F1 2/5; question 2 has P 1/2 and R 1, so F1 2/3.
            "joint_em": 0,
            "joint_prec": (1 + 1 / 2) / 4,
            "joint_recall": (1 / 4 + 1) / 4,
            "joint_f1": (2 / 5 + 2 / 3) / 4,
        }
    )
    with pytest.raises(ValueError, match="no question"):
        hotpotqa_scores({}, {}, {})
