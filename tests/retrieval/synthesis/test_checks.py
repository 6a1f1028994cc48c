"""Every check of a made question refuses what it is for, and only that."""

from __future__ import annotations

import pytest

pytest.importorskip("py3langid", reason="py3langid is not installed; run `make install`")

from retrieval.corpus.types import Document
from retrieval.prompts.answer_styles import false_quotes
from retrieval.settings.synthesis.question_generation import QuestionGeneration
from retrieval.synthesis.checks import Candidate, Checked, check, edited
from retrieval.synthesis.read_answers import Draft
from retrieval.synthesis.standalone import named_source, points_at_text

TEXT = (
    "The harbour office of Norwick opens at seven in the morning. Ships over forty metres need a pilot. "
    "Pilots are ordered by radio on channel 12, at least two hours before arrival."
)
OTHER = "In winter the harbour office of Norwick opens at nine. Ice is broken every night."
GOOD = "When does the harbour office of Norwick open?"


def run(
    question: str = GOOD,
    answer: str = "at seven in the morning",
    quotes: tuple[str, ...] = (),
    reasoning: str = "",
    kind: str = "fact",
    texts: tuple[str, ...] = (TEXT,),
    **settings: object,
) -> Checked:
    chunks = tuple(
        Document(
            f"opening-hours.md@{n}-{n + 9}", "Harbour", text, "opening-hours.md", 1, None, "opening-hours.md"
        )
        for n, text in enumerate(texts)
    )
    teacher = {"base_url": "http://localhost/v1", "model": "m"}
    given = QuestionGeneration.model_validate({"teacher": teacher, **settings})
    draft = Draft(kind, question, answer, quotes, reasoning)
    return check(Candidate(draft, kind, chunks, "en", bool(reasoning), given))


def test_a_good_question_is_accepted_with_its_evidence() -> None:
    found = run()
    assert found.reason == "" and found.supplied
    assert found.evidence == "The harbour office of Norwick opens at seven in the morning."


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"question": "???"}, "question_no_question"),
        ({"question": "W" * 500}, "question_no_question"),
        # What small models write: a sentence of the text.
        ({"question": "The harbour office of Norwick opens."}, "question_no_question"),
        ({"answer": "The harbour office of Norwick " * 5}, "answer_too_long"),
        ({"answer": ""}, "answer_missing"),
        ({"answer": "at eight"}, "answer_not_in_text"),
        ({"question": "Who opens at seven in the morning at Norwick?"}, "answer_in_question"),
        ({"question": "When does the office described above open?"}, "question_not_standalone"),
        ({"question": "What does this table say about Norwick?"}, "question_not_standalone"),
        ({"question": "Who wrote the text about Norwick?"}, "question_not_standalone"),
        ({"question": "Which of the following opens at Norwick?"}, "question_not_standalone"),
        ({"question": "Which harbour of Norwick opens after this one?"}, "question_not_standalone"),
        ({"question": "What is the name of the document on Norwick?"}, "question_not_standalone"),
        (
            {"question": "According to the text, when does the Norwick office open?"},
            "question_not_standalone",
        ),
        ({"question": "When does it open in the harbour?", "answer": "at seven"}, "question_not_standalone"),
        ({"question": "What does opening-hours.md say about Norwick?"}, "question_names_its_source"),
        ({"question": "What about Norwick is in chunk 3?"}, "question_names_its_source"),
        ({"question": "Who won the tennis match?", "answer": "seven"}, "question_not_about_its_text"),
        (
            {"question": "Wann genau öffnet morgens eigentlich das Büro im harbour von Norwick?"},
            "wrong_language",
        ),
        ({"kind": "unanswerable", "answer": "forty metres"}, "answerable_after_all"),
        ({"kind": "how_to", "answer": "by radio", "quotes": ()}, "quote_missing"),
        ({"kind": "how_to", "answer": "by radio", "quotes": ("Pilots fly.",)}, "quote_not_verbatim"),
        (
            {
                "kind": "comparison",
                "answer": "two hours later in winter",
                "texts": (TEXT, OTHER),
                "quotes": ("In winter the harbour office of Norwick opens at nine.",),
            },
            "comparison_of_one_text",
        ),
        ({"reasoning": "It opens early. ##Answer: at nine"}, "reasoning_of_another_answer"),
        (
            {"reasoning": "##begin_quote## At dawn. ##end_quote## So: ##Answer: at seven in the morning"},
            "quote_not_verbatim",
        ),
        (
            {"question": "Does the Norwick harbour use mail@example.org?", "refuse_personal_data": True},
            "personal_data",
        ),
        (
            {"question": "Call the harbour at +44 20 7946 0958?", "refuse_personal_data": True},
            "personal_data",
        ),
        ({"refuse_words": ["harbour office"]}, "refused_word"),
    ],
)
def test_each_reason(given: dict[str, object], reason: str) -> None:
    assert run(**given).reason == reason  # type: ignore[arg-type]


def test_the_hooks_are_off_by_default() -> None:
    assert run("Does the harbour office of Norwick answer mail@example.org, when does it open?").reason == ""


def test_a_name_that_the_text_itself_says_is_no_leak() -> None:
    text = "The settings of Norwick are in config.yaml.md, which is read at seven in the morning."
    assert (
        run("When is config.yaml.md of Norwick read?", "at seven in the morning", texts=(text,)).reason == ""
    )


def test_quotations_become_those_of_the_text() -> None:
    found = run(
        "How is a pilot ordered at the harbour of Norwick?",
        "by radio on channel 12",
        ('"Ships over forty metres  need a\npilot."',),
        kind="how_to",
    )
    assert found.quotes == ("Ships over forty metres need a pilot.",)


def test_a_reasoned_answer_ends_in_the_answer_and_quotes_what_is_there() -> None:
    quote = "##begin_quote## The harbour office of Norwick  opens at seven in the morning. ##end_quote##"
    for reasoning in ("Offices open early.", f"{quote} So it is. ##Answer: At seven in the morning."):
        found = run(reasoning=reasoning)
        assert found.reason == ""
        assert found.reasoned.endswith("##Answer: at seven in the morning")
        assert found.reasoned.count("##Answer:") == 1 and "##begin_quote##" in found.reasoned
        assert false_quotes(found.reasoned, TEXT) == []


def test_a_comparison_quotes_both_texts() -> None:
    quotes = ("opens at seven in the morning", "In winter the harbour office of Norwick opens at nine.")
    found = run(
        "How much later does the harbour office of Norwick open in winter?",
        "two hours",
        quotes,
        kind="comparison",
        texts=(TEXT, OTHER),
    )
    assert found.reason == "" and found.quotes == quotes


def test_what_a_person_edits_gets_its_evidence() -> None:
    chunk = Document("d", "", TEXT)
    assert edited(GOOD, "channel 12", [chunk]).evidence.startswith("Pilots are ordered")
    assert edited(GOOD, "", [chunk]) == Checked("")


@pytest.mark.parametrize(
    ("language", "question", "points"),
    [
        ("en", "What is shown in this figure?", True),
        ("en", "What does the above paragraph describe?", True),
        ("en", "Why did he leave Norwick?", True),
        ("en", "Which document does a captain need in Norwick?", False),
        ("en", "Who wrote the first chapter of Moby-Dick?", True),
        ("de", "Was steht in diesem Abschnitt?", True),
        ("de", "Welcher Autor schrieb Faust?", False),
        ("fr", "Que dit ce texte ?", True),
        ("es", "¿Qué dice este documento?", True),
        ("it", "Che cosa dice questo articolo?", True),
        ("pt", "O que diz este trecho?", True),
        ("nl", "Wat zegt deze tekst?", True),
        ("fi", "What does this text say?", False),
    ],
)
def test_pointing_at_a_text(language: str, question: str, points: bool) -> None:
    assert points_at_text(question, language) is points


def test_the_source_is_found_by_file_name_and_chunk() -> None:
    assert named_source("see guide.pdf", ()) == "guide.pdf"
    assert named_source("n7@120-300", ()) == "@120-300"
    assert named_source("What does user_guide say?", {"docs/user_guide.md"}) == "user_guide"
    assert named_source("What is a guide?", {"docs/guide.md"}) == ""
