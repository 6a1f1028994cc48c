"""Denotations on hand-written pairs. Every value was worked out from the rules of the official evaluator."""

from __future__ import annotations

import pytest

from retrieval.evaluation.measures.denotations import denotation_correct, normalize

#: (predicted values, right values, their canonical forms or None, whether it is right)
PAIRS: list[tuple[list[str], list[str], list[str] | None, bool]] = [
    # Texts: letters.
    (["Wolfe Tones"], ["wolfe tones"], None, True),
    (["Zürich"], ["Zurich"], None, True),
    (["Łódź"], ["Lodz"], None, False),  # ł is a letter, not an l with a mark
    (["Straße"], ["strasse"], None, False),  # lower case is not case folding
    (["ﬁne"], ["fine"], None, True),  # compatibility forms are decomposed
    (["x²"], ["x2"], None, True),
    (["½"], ["1⁄2"], None, True),
    (["दिन"], ["दन"], None, False),  # this vowel sign is Mc, so it stays
    (["दुन"], ["दन"], None, True),  # this one is Mn, so it goes like an accent
    (["a  b"], ["a b"], None, True),
    # Texts: quotes and dashes.
    (["“Quoted”"], ["Quoted"], None, True),
    (["‘Quoted’"], ["Quoted"], None, False),  # only double quotes around a text go
    (['"a" and "b"'], ['a" and "b'], None, False),  # these are not around the whole text
    (["`tis"], ["'tis"], None, True),
    (["´tis"], ["'tis"], None, False),  # decomposed to a blank and an accent before quotes are looked for
    (["1990–91"], ["1990-91"], None, True),
    # Texts: citations and details at the end.
    (["Name[1][note 2]"], ["Name"], None, True),
    (["[5]"], [""], None, True),  # a number in brackets goes even alone
    (["[note]"], ["note"], None, False),  # other brackets stay if they are the whole text
    (["Name†"], ["Name"], None, True),
    (["*"], [""], None, True),
    (["C#"], ["C"], None, True),
    (["C++"], ["C"], None, True),
    (["#1"], ["1"], None, False),  # only at the end
    (["Name (born 1950)"], ["Name"], None, True),
    (["Name(born 1950)"], ["Name"], None, False),  # a blank must stand before it
    (["(all of it)"], ["all of it"], None, False),
    (["Name (a) (b)*"], ["Name"], None, True),
    (['"Name (a)" [2]'], ["Name"], None, True),  # citation, then quotes, then detail
    # Texts: the final full stop, one of them.
    (["Name."], ["Name"], None, True),
    (["Name.."], ["Name"], None, False),
    (["Name (a)."], ["Name"], None, False),  # the full stop goes last, and hides the detail
    (["St. Louis"], ["St Louis"], None, False),
    # Numbers.
    (["2004.0"], ["2004"], None, True),
    (["2004.1"], ["2004"], None, False),
    (["1e3"], ["1000"], None, True),
    (["007"], ["7"], None, True),
    ([" 7 "], ["7"], None, True),
    (["+5"], ["5"], None, True),
    (["-5"], ["−5"], None, True),
    (["1,000"], ["1000"], ["1000.0"], False),  # a prediction with a comma is a text
    (["1000"], ["1,000"], ["1000.0"], True),
    (["1,000"], ["1,000"], ["1000.0"], True),
    (["1_000"], ["1000"], None, False),
    (["$5"], ["5"], None, False),
    (["50%"], ["50"], None, False),
    (["5"], ["5 people"], None, False),
    (["5"], ["5 people"], ["5.0"], True),
    (["five"], ["5"], ["5.0"], False),
    (["5"], ["five"], ["5.0"], True),
    (["3.0000001"], ["3"], None, True),
    (["2.9999999"], ["3"], None, False),  # nearly whole numbers are cut, to 2
    (["0.1234567"], ["0.1234569"], None, True),  # closer than 1e-6
    (["0.12345"], ["0.12346"], None, False),
    (["0.33"], ["1/3"], None, False),
    (["nan"], ["NaN"], None, True),  # equal as texts
    (["inf"], ["infinity"], None, False),  # and no numbers
    # Dates.
    (["2001-02-03"], ["2001-2-3"], None, True),
    (["2001-02-03"], ["February 3, 2001"], ["2001-02-03"], True),
    (["2001-02-03"], ["February 3, 2001"], None, False),
    (["February 3, 2001"], ["February 3, 2001"], ["2001-02-03"], True),
    (["2001-02-xx"], ["February 2001"], ["2001-02-xx"], True),
    (["2001-02-03"], ["February 2001"], ["2001-02-xx"], False),
    (["xx-02-03"], ["2001-02-03"], None, False),
    (["xxxx-02-03"], ["xx-2-3"], None, True),
    (["XX-02-03"], ["xx-2-3"], None, True),
    (["2001-xx-xx"], ["2001"], None, True),  # a year alone is a number
    (["2001"], ["2001-02-03"], None, False),
    (["2001-13-01"], ["2001-13-1"], None, False),  # no month 13: two texts
    (["3-1-0"], ["3-1-00"], None, False),  # no day 0
    (["3-2-1"], ["03-02-01"], None, True),  # a result of three numbers is read as a date
    (["2001-2"], ["2001-02"], None, False),
    (["xx-xx-xx"], ["xx-xx-xx"], None, True),  # equal as texts
    # Sets.
    (["a", "b"], ["b", "a"], None, True),
    (["a"], ["a", "b"], None, False),
    (["a", "b", "c"], ["a", "b"], None, False),
    (["a", "a"], ["a"], None, True),
    (["A", "a."], ["a"], None, True),  # one text after normalising
    (["Name (x)", "Name"], ["Name"], None, True),
    (["3", "3.0"], ["3"], None, True),  # one number
    (["3"], ["3", "3.0"], None, True),
    (["3", "three"], ["three"], ["3.0"], False),  # each matches, but they are two values
    (["2001-2-3", "2001-02-03"], ["2001-02-03"], None, True),  # one date
    (["5", "six"], ["5", "6"], ["5.0", "6.0"], False),
    ([], ["a"], None, False),
    ([], [], None, True),
]


def test_there_are_sixty_pairs() -> None:
    assert len(PAIRS) >= 60


@pytest.mark.parametrize(("predicted", "gold", "canonical", "right"), PAIRS)
def test_pairs(predicted: list[str], gold: list[str], canonical: list[str] | None, right: bool) -> None:
    assert denotation_correct(predicted, gold, canonical) is right


@pytest.mark.parametrize(
    ("prediction", "gold", "canonical", "right"),
    [
        ("b, a", ["a", "b"], None, True),
        ("Bangkok, Thailand", ["Bangkok, Thailand"], None, True),
        ("Bangkok, Thailand, Rome", ["Rome", "Bangkok, Thailand"], None, True),
        ("Bangkok, Thailand", ["Bangkok", "Thailand"], None, True),
        ("a, b, c", ["a", "b"], None, False),
        ("a, a", ["a"], None, True),
        ("3, 3.0", ["3"], None, True),
        ("3, three", ["three"], ["3.0"], False),
        ("1,000", ["1,000"], None, True),
        ("2,000, 3", ["3", "2,000"], None, True),
        ("", ["a"], None, False),
        (", ".join("x" * 1000), ["y"], None, False),
    ],
)
def test_one_line_is_right_if_some_cut_of_it_is(
    prediction: str, gold: list[str], canonical: list[str] | None, right: bool
) -> None:
    assert denotation_correct(prediction, gold, canonical) is right


@pytest.mark.parametrize("gold", ["1,000", "1 000", "1\u00a0000", "+1,000.0"])
def test_grouped_digits_of_a_right_answer_are_a_number_without_its_canonical_form(gold: str) -> None:
    assert denotation_correct("1000", [gold])
    assert not denotation_correct("1000", [gold], ["about a thousand"])


def test_canonical_forms_belong_to_right_answers() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        denotation_correct("a", ["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("  Café   Zürich. ", "cafe zurich"),
        ("“Quoted”", "quoted"),
        ("Name[1][note 2]", "name"),
        ("Name (a) (b)†", "name"),
        ("(all of it)", "(all of it)"),
        ("‘tis", "'tis"),
        ("[5]", ""),
    ],
)
def test_normalize(raw: str, plain: str) -> None:
    assert normalize(raw) == plain
