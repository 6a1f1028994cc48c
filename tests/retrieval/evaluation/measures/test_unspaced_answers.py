"""Exact match and F1 by characters, against a plain form of MLQA's rules for Chinese."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evaluation.measures.unspaced_answers import character_exact_match, character_f1, segments


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("北京大学。", ["北", "京", "大", "学"]),
        ("「NBA 总决赛」 2016年", ["nba", "总", "决", "赛", "2016", "年"]),
        ("the 北京", ["the", "北", "京"]),  # no articles
        ("a-b", ["ab"]),
        ("ไทยง่าย", ["ไ", "ท", "ย", "ง่", "า", "ย"]),  # a mark stays with its character
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("", []),
    ],
)
def test_segments(text: str, words: list[str]) -> None:
    assert segments(text) == words


@pytest.mark.parametrize(
    ("said", "gold", "exact", "f1"),
    [
        ("北京", ["北京"], True, 1),
        ("北京。", ["北京"], True, 1),
        ("北 京", ["北京"], True, 1),  # blanks between characters say nothing
        ("京北", ["北京"], False, 1),
        ("北京大学", ["北京"], False, 2 / 3),  # P 2/4, R 1
        ("北京", ["上海", "北京市"], False, 4 / 5),  # P 1, R 2/3
        ("2016年", ["2016"], False, 2 / 3),
        ("１２", ["12"], False, 0),  # full-width digits are others, as in MLQA
        ("", ["北京"], False, 0),
        ("。", ["！"], True, 0),  # nothing is left of both: exact, but without F1
        ("北京", [], False, 0),
    ],
)
def test_by_hand(said: str, gold: list[str], exact: bool, f1: float) -> None:
    assert character_exact_match(said, gold) is exact
    assert character_f1(said, gold) == pytest.approx(f1)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("北京大学ab 1,。「é\n"), max_size=12))
def test_segments_are_those_of_a_plain_loop(text: str) -> None:
    words: list[str] = [""]
    for character in text.lower():
        if unicodedata.category(character)[0] == "P":
            continue
        if "\u4e00" <= character <= "\u9fa5":
            words += [character, ""]
        elif character.isspace():
            words.append("")
        else:
            words[-1] += character
    assert segments(text) == [word for word in words if word]
