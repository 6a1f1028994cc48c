"""Words of every script: what is one word, what are equal words, and that ASCII keeps its old words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.guards.leaks import quotes
from retrieval.prompts.answer_styles import supporting_sentence
from retrieval.search.bm25.builder import BM25Builder
from retrieval.text import words as words_of_text
from retrieval.text.normalize import Tokenizer
from retrieval.text.words import index_terms, tokenize


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_text_has_the_words_that_it_always_had(text: str) -> None:
    expected = re.findall(r"\w+", text.casefold())
    assert tokenize(text) == index_terms(text) == Tokenizer()(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("दिन दान दीन", ["दिन", "दान", "दीन"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("Ελλάδα, ΕΛΛΆΔΑ", ["ελλαδα", "ελλαδα"]),
        ("naïve naïve", ["naïve", "naïve"]),
        ("ﬁne com\u00adputer １２", ["fine", "computer", "12"]),
        ("العَرَبِيَّةُ العربية", ["العربيه", "العربيه"]),
        ("شـــكرا ٢٠٢٤", ["شكرا", "2024"]),
        ("می\u200cخواهم", ["مي", "خواهم"]),
        ("東京 x水y", ["東", "京", "x", "水", "y"]),
        ("ไทยง่าย", ["ไ", "ท", "ย", "ง่", "า", "ย"]),
        ("İSTANBUL Ispanak ıspanak", ["istanbul", "ispanak", "ispanak"]),
    ],
)
def test_words_for_comparisons(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("東京都はDVD", ["東京", "京都", "都は", "dvd"]),
        ("水", ["水"]),
        ("ง่าย", ["ง่า", "าย"]),
        ("한국어 words", ["한국어", "words"]),
    ],
)
def test_terms_of_an_index_are_pairs_where_there_are_no_blanks(text: str, terms: list[str]) -> None:
    assert index_terms(text) == terms


def test_turkish_has_two_letters_i() -> None:
    assert Tokenizer("turkish").words("ISPARTA İZMİR ısparta izmir") == [
        "ısparta",
        "izmir",
        "ısparta",
        "izmir",
    ]


@pytest.mark.parametrize(
    ("text", "plain"), [("Café", "cafe"), ("Łódź", "lodz"), ("ØRE", "ore"), ("हिन्दी", "हिन्दी")]
)
def test_diacritics_are_folded_if_wanted(text: str, plain: str) -> None:
    assert Tokenizer(diacritics="fold")(text) == [plain]
    assert Tokenizer(diacritics="keep")(text) == Tokenizer()(text)


def test_an_index_keeps_its_rule_for_queries(tmp_path: Any) -> None:
    with BM25Builder(Tokenizer(diacritics="fold"), tmp_path / "index") as builder:
        builder.add(["le café", "la gare", "le port"])
        index = builder.finish()
    assert index.tokenizer == Tokenizer(diacritics="fold")
    assert index.search(index.tokenizer("CAFE"), 1)[0].tolist() == [0]


def test_quotations_and_leaks_without_blanks() -> None:
    text = "京都は古い町です。東京は日本の首都です。大阪も大きい。"
    assert supporting_sentence([text], ["首都"], "東京は何ですか") == "東京は日本の首都です。"
    parent = "東京は日本の首都であり、とても大きい町です"
    assert quotes(f"あなたは{parent}と言った", parent)
    assert not quotes("東京は大きい町だ", parent)


def test_texts_that_are_not_searched_for_marks_have_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"x{chr(code)}y {chr(code)}z 1{chr(code)}" for code in (*range(0x530), *range(0x2000, 0x2100))]

    def found() -> list[list[str]]:
        return [
            *map(tokenize, texts),
            *(index_terms(text) for text in texts),
            *(index_terms(text, "turkish", fold_diacritics=True) for text in texts),
        ]

    fast = found()
    monkeypatch.setattr(words_of_text, "_UNUSUAL", re.compile(""))  # now every text is searched
    assert found() == fast
