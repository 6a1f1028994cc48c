"""SQuAD's exact match and F1 on hand-written pairs. Every value was worked out from the published rules."""

from __future__ import annotations

import pytest

from retrieval.evaluation.measures.squad import exact_match, f1, normalize_answer

#: (prediction, accepted answers, exact match, F1), by the rules of version 2.0.
PAIRS = [
    # Punctuation goes without a blank in its place, so parts of a word grow together.
    ("The 13 coins!", ["13 coins"], True, 1),
    ("1,234", ["1234"], True, 1),
    ("1.5", ["15"], True, 1),
    ("-5", ["5"], True, 1),  # a minus is punctuation
    ("U.S.A.", ["usa"], True, 1),
    ("the U.S.", ["US"], True, 1),
    ("U. S.", ["US"], False, 0),  # `u s` are two words
    ("N/A", ["na"], True, 1),
    ("state-of-the-art", ["state of the art"], False, 0),  # one word against three
    ("rock 'n' roll", ["rock n roll"], True, 1),
    ("don't", ["dont"], True, 1),
    ("Beyoncé's", ["Beyoncés"], True, 1),
    ("a_b", ["ab"], True, 1),
    ("and/or", ["andor"], True, 1),
    ("and / or", ["and or"], True, 1),
    ("C++", ["C"], True, 1),
    ("C#", ["c"], True, 1),
    ("# 3", ["3"], True, 1),
    ("$5 million", ["5 million"], True, 1),
    ("50%", ["50 percent"], False, 2 / 3),  # P 1, R 1/2
    ("9:30 a.m.", ["930 am"], True, 1),
    ('"Hamlet"', ["Hamlet"], True, 1),
    # Only ASCII signs are punctuation.
    ("don’t", ["don't"], False, 0),
    ("“Hamlet”", ["Hamlet"], False, 0),
    ("1990–1991", ["1990-1991"], False, 0),
    ("1990–1991", ["1990–1991"], True, 1),
    ("€5 million", ["5 million"], False, 1 / 2),
    ("東京。", ["東京"], False, 0),
    # Articles go, but only as whole words, after the punctuation.
    ("The Who", ["Who"], True, 1),
    ("state of the art", ["state of art"], True, 1),
    ("an apple", ["a apple"], True, 1),
    ("Vitamin A", ["vitamin"], True, 1),
    ("Vitamin-A", ["vitamin A"], False, 0),  # `vitamina` against `vitamin`
    ("A. A. Milne", ["Milne"], True, 1),
    ("A.A. Milne", ["Milne"], False, 2 / 3),  # `aa` is no article: P 1/2, R 1
    ("9:30 a m", ["9:30 m"], True, 1),
    ("theatre", ["atre"], False, 0),
    ("the-atre", ["atre"], False, 0),
    ("a\nb", ["b"], True, 1),
    ("à la carte", ["la carte"], False, 4 / 5),  # `à` is another letter: P 2/3, R 1
    ("a\u0300 la carte", ["la carte"], False, 4 / 5),  # written apart, the a goes and its accent is a word
    # White space is that of Unicode; other invisible characters are none.
    ("  New\u00a0York ", ["new york"], True, 1),
    ("New\u200bYork", ["New York"], False, 0),
    # Letters are compared in lower case, in no other way.
    ("café", ["cafe"], False, 0),
    ("cafe\u0301", ["café"], False, 0),
    ("STRASSE", ["Straße"], False, 0),
    ("İzmir", ["izmir"], False, 0),  # the lower case of İ is i with a dot above
    ("東京", ["東京"], True, 1),
    ("東京 タワー", ["東京"], False, 2 / 3),
    # F1 counts a word as often as both sides have it, in any order.
    ("13 coin", ["13 coins"], False, 1 / 2),
    ("be to", ["to be"], False, 1),
    ("to be or not to be", ["to be"], False, 1 / 2),  # P 2/6, R 1
    ("to be", ["to be or not to be"], False, 1 / 2),
    ("dog dog dog", ["dog"], False, 1 / 2),  # P 1/3, R 1
    ("the cat sat on the mat", ["cat on a mat"], False, 6 / 7),  # P 3/4, R 1
    ("answer: 42", ["42"], False, 2 / 3),
    ("no answer", ["no"], False, 2 / 3),  # SQuAD has no special words
    # The best accepted answer counts.
    ("about 13 coins", ["thirteen", "13 coins"], False, 4 / 5),  # P 2/3, R 1
    ("Paris", ["Paris, France", "Paris", "France"], True, 1),
    ("Paris in France", ["Paris", "France"], False, 1 / 2),  # P 1/3, R 1 with either
    # Nothing is left of a text.
    ("", ["42"], False, 0),
    ("!!!", ["42"], False, 0),
    ("The The", ["the band The The"], False, 0),  # nothing against `band`
    # Accepted answers of which nothing is left do not count; without others, nothing is the right answer.
    ("x", ["the", "x"], True, 1),
    ("", ["the", "x"], False, 0),
    ("a", ["the"], True, 1),
    ("A", ["a"], True, 1),
    # No answer is right.
    ("", [], True, 1),
    ("the", [], True, 1),
    (".", [], True, 1),
    ("nothing", [], False, 0),
]


def test_there_are_sixty_pairs() -> None:
    assert len({(said, *gold) for said, gold, _, _ in PAIRS}) >= 60


@pytest.mark.parametrize(("prediction", "gold", "exact", "overlap"), PAIRS)
def test_pairs(prediction: str, gold: list[str], exact: bool, overlap: float) -> None:
    assert exact_match(prediction, gold) is exact
    assert f1(prediction, gold) == pytest.approx(overlap, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "overlap"),
    [pair for pair in PAIRS if pair[1] and all(normalize_answer(answer) for answer in pair[1])],
)
def test_versions_agree_where_every_accepted_answer_has_words(
    prediction: str, gold: list[str], exact: bool, overlap: float
) -> None:
    assert exact_match(prediction, gold, "1.1") is exact
    assert f1(prediction, gold, "1.1") == pytest.approx(overlap, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [("the", ["a"]), ("", ["the", "x"]), ("!", ["..."])],
)
def test_two_empty_texts_are_exact_but_have_no_f1_in_version_1(prediction: str, gold: list[str]) -> None:
    assert exact_match(prediction, gold, "1.1")
    assert f1(prediction, gold, "1.1") == 0


def test_version_1_has_an_answer_to_every_question() -> None:
    with pytest.raises(ValueError, match=r"take version 2\.0"):
        exact_match("x", [], "1.1")
