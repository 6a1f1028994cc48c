"""Answer styles, token budgets and distractors: pure functions of one record."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_core.base.errors import InputError
from retrieval.prompts import answer_styles, distractors
from retrieval.prompts.answer_matching import final_answer
from retrieval.prompts.answer_styles import AnswerTemplate, Passage, taught_answer
from retrieval.prompts.token_budget import count_words, fit
from retrieval.text.sentences import sentences

RIGHT = "The kettle cost 12 coins in 1999. Marta bought it at the harbour! It still works."


def taught(
    style: str, answers: list[str], oracles: list[str], abstain: str | None = None, template: str = ""
):
    passages = [Passage(f"d{i}", "", text) for i, text in enumerate(oracles)]
    loaded = AnswerTemplate.load(template, "qa.answer_template") if template else None
    return taught_answer(
        style,  # type: ignore[arg-type]
        loaded,
        record="qa:q1",
        question="Who bought the kettle?",
        answers=answers,
        direct=answers[0],
        passages=[*passages, Passage("x", "", "A distractor about Marta.")],
        oracles=passages,
        abstain=abstain,
    )


def test_sentences_are_verbatim_parts() -> None:
    assert sentences(RIGHT) == [
        "The kettle cost 12 coins in 1999.",
        "Marta bought it at the harbour!",
        "It still works.",
    ]
    assert sentences("It cost 3.5 coins. 'Really?' Yes") == ["It cost 3.5 coins.", "'Really?'", "Yes"]
    assert sentences("one line\nanother") == ["one line", "another"]
    assert sentences("  ") == []


def test_quote_then_answer_quotes_the_sentence_that_holds_the_answer() -> None:
    found = taught("quote", ["Marta"], [RIGHT])
    assert found.output == ("##begin_quote## Marta bought it at the harbour! ##end_quote## ##Answer: Marta")
    assert (found.gold, found.counted) == (("Marta",), "quoted")
    assert final_answer(found.output) == "Marta" and final_answer("plain") == "plain"
    assert answer_styles.false_quotes(found.output, f"[1] {RIGHT}") == []
    assert answer_styles.false_quotes(found.output, "[1] Marta bought it") == [
        "Marta bought it at the harbour!"
    ]
    # Whole words only, and the accepted answers in turn: "art" is in no sentence, "12 coins" is.
    assert taught("quote", ["art", "12 coins"], [RIGHT]).output.startswith("##begin_quote## The kettle cost")


def test_a_quote_that_cannot_be_had_is_counted() -> None:
    assert taught("quote", ["Lena"], [RIGHT]) == answer_styles.Taught("Lena", ("Lena",), "quote_not_found")
    assert taught("quote", ["Lena"], []) == answer_styles.Taught("Lena", ("Lena",), "quote_without_oracle")


def test_abstention_replaces_answer_and_gold_where_no_oracle_is_there() -> None:
    for style in ("direct", "quote"):
        assert taught(style, ["Marta"], [], "Not there.") == answer_styles.Taught(
            "Not there.", ("Not there.",), "abstained"
        )
        assert taught(style, ["Marta"], [RIGHT], "Not there.").gold == ("Marta",)


def test_a_template_sees_the_record() -> None:
    source = "{% if oracle_in_context %}{{ oracles[0].id }}: {{ quote }} So: {{ answer|upper }}{% endif %}"
    found = taught("template", ["Marta"], [RIGHT], template=source)
    assert found.output == "d0: Marta bought it at the harbour! So: MARTA"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ answr }}", r"record qa:q1: 'answr' is undefined; known fields: question, answer"),
        ("{{ ''.__class__.__mro__ }}", r"record qa:q1: access to attribute '__class__' .*is unsafe"),
        ("{{ answers[0].format_map }}{{ 1/0 }}", r"record qa:q1: "),
        ("{{ '' }}", r"record qa:q1: the template gives no text"),
        ("{% for x in range(999999999) %}{% endfor %}", r"record qa:q1: Range too big"),
    ],
)
def test_a_template_that_fails_is_one_clear_line(template: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"^qa\.answer_template: {said}") as caught:
        taught("template", ["Marta"], [RIGHT], template=template)
    assert "\n" not in str(caught.value)


def test_a_broken_template_is_refused_with_its_line() -> None:
    with pytest.raises(InputError, match=r"^qa\.answer_template, line 2: .*unexpected"):
        AnswerTemplate.load("{{ answer }}\n{{ }", "qa.answer_template")


def test_a_budget_drops_the_least_wanted_first_and_keeps_the_oracle() -> None:
    texts = ["one two three", "four five", "six seven eight nine"]
    assert fit(texts, 9, count_words).texts == tuple(texts)
    assert fit(texts, 6, count_words).texts == ("one two three", "four five", None)
    assert fit(texts, 7, count_words, protected=[2]).texts == ("one two three", None, texts[2])
    assert fit(texts, 4, count_words, protected=[2]).texts == (None, None, texts[2])
    # Titles and labels count while their text is there.
    assert fit(texts, 6, count_words, fixed=[1, 1, 1]).texts == ("one two three", None, None)
    # Without an oracle to protect (held out), the best one stays and loses its end.
    cut = fit(texts, 2, count_words)
    assert (cut.texts, cut.shortened, cut.over) == (("one two", None, None), True, False)


def test_an_oracle_that_is_too_long_keeps_the_answers_sentence() -> None:
    keep = "Marta bought it at the harbour!"
    for budget, left in (
        (16, RIGHT),
        (13, "The kettle cost 12 coins in 1999. " + keep),
        (9, keep + " It still works."),
        (6, keep),
        (2, keep),
    ):
        fitted = fit([RIGHT], budget, count_words, [0], lambda text: keep)
        assert fitted.texts == (left,)
        assert fitted.over == (count_words(left) > budget)
    whole = fit([RIGHT], 5, count_words, [0], lambda text: None)
    assert whole.texts == (RIGHT,) and whole.over


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab .", min_size=1, max_size=40), min_size=1, max_size=6),
    st.integers(1, 40),
    st.sets(st.integers(0, 5), max_size=2),
)
def test_any_budget_is_kept_or_said_to_be_over(texts: list[str], budget: int, wanted: set[int]) -> None:
    protected = {i for i in wanted if i < len(texts)}
    fitted = fit(texts, budget, count_words, protected)
    left = [text for text in fitted.texts if text is not None]
    assert (sum(map(count_words, left)) <= budget) != fitted.over
    assert all(fitted.texts[i] is not None for i in protected) and left
    if fitted.over:
        assert protected and all(fitted.texts[i] is None for i in set(range(len(texts))) - protected)
    assert fitted.shortened == (fitted.texts != tuple(texts) or fitted.over)


def test_distractors_come_from_the_range_of_ranks() -> None:
    def draw(place: int) -> int:
        return -place

    usable = list(range(100, 130))
    assert distractors.pick(iter(usable), 3, None, draw) == ([100, 101, 102], 0)
    assert distractors.pick(iter(usable), 3, (5, 10), draw) == ([107, 108, 109], 0)
    assert distractors.pick(iter(usable), 3, (29, 60), draw) == ([127, 128, 129], 1)
    assert distractors.pick(iter(usable), 4, (2, 3), draw) == ([101, 102, 103, 104], 2)
    assert distractors.pick(iter(usable[:2]), 4, (3, 5), draw) == ([100, 101], 2)
    assert distractors.pick(iter(usable), 0, (1, 2), draw) == ([], 0)


def test_copies_of_the_right_text_are_no_distractors() -> None:
    test = distractors.CopyTest([RIGHT], 0.8)
    assert test(RIGHT.upper()) and test(RIGHT + " Yes.")
    assert not test("Marta bought it at the harbour!")
    assert not distractors.CopyTest([RIGHT], "off")(RIGHT)


def test_groups_share_within_blocks_and_leave_the_test_split_alone() -> None:
    splits = ["train", "train", "test", "train", "train", "test", "train"]
    assert distractors.sharing_groups(splits, 3) == [
        (0, 1),
        (0, 1),
        (2,),
        (3, 4),
        (3, 4),
        (5,),
        (6,),
    ]
    assert distractors.sharing_groups(splits, 1) == [(i,) for i in range(7)]
    assert distractors.merged([[5, 6], [7], [5, 8, 9]]) == [5, 7, 6, 8, 9]
