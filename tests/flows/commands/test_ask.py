"""`jora ask`: where questions come from, which task and adapter answer, and what is shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from flows.commands.prompts.ask import Asking, ask, ask_questions, describe, read_questions
from flows.commands.prompts.ask import _answer as answer_of
from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG
from jora_core.base.errors import InputError


def test_where_questions_come_from(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("\ufeffWho?\n\n  When?  \n")
    assert read_questions("Who?", None) == ["Who?"]
    assert read_questions("", file) == ["Who?", "When?"]
    file.write_text("\n \n")
    for question, path, said in (
        ("", None, "the question is empty"),
        (" \n", None, "the question is empty"),
        ("Who?", file, "expected one of"),
        ("", file, "holds no question"),
        ("", tmp_path / "nowhere", "no such file"),
    ):
        with pytest.raises(InputError, match=said):
            read_questions(question, path)


def test_a_question_in_another_encoding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # As Python reads bytes that are not UTF-8: strictly, or as halves of surrogate pairs in a plain locale.
    for errors in ("strict", "surrogateescape"):
        stream = io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n"), encoding="utf-8", errors=errors)
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(InputError, match=r"standard input.* is not UTF-8"):
            read_questions("-", None)
    with pytest.raises(InputError, match=r"^QUESTION 'caf.udce9': is not UTF-8; write it as UTF-8$"):
        ask(question="caf\udce9")


@pytest.mark.parametrize(
    ("asking", "said"),
    [
        (Asking(["Who?"], task="songs"), "--task songs: the configuration has"),
        (Asking(["Who?"], task="qa", thread="1"), "--thread is for threads"),
        (Asking(["Who?"], task="qa", author="Ann"), "--author is for threads"),
        (Asking(["Who?"]), "no finished training of this project; run `jora run"),
    ],
)
def test_refused(asking: Asking, said: str, tmp_path: Path) -> None:
    config = load_config(SAMPLE_CONFIG, [f"store={tmp_path}"])
    with pytest.raises(InputError, match=said):
        ask_questions(config, asking)


def shown(written: str = "", choice: str = "") -> dict[str, Any]:
    texts = [
        {"id": "d1", "label": "[1] Fees", "text": "A visit costs 9 euros. Cash only.", "rank": 2},
        {"id": "d2", "label": "[2] Hours", "text": "It opens at noon.", "rank": 1},
    ]
    row = {"text": written, "choice": choice, "choice_logprob": -0.1 if choice else None}
    return answer_of(
        "What does it cost?", {"record": {"task": "qa"}, "texts": texts}, row, "finetune-task 1a"
    )


def test_quotations_are_held_against_what_was_read() -> None:
    quoted = "##begin_quote## A visit costs 9 euros. ##end_quote## ##begin_quote## It is free. ##end_quote##"
    found = shown(f"{quoted} ##Answer: 9 euros")
    assert found["answer"] == "9 euros" and found["unsupported_quotes"] == ["It is free."]
    assert [text["quoted"] for text in found["texts"]] == [["A visit costs 9 euros."], []]
    lines = describe(found).split("\n")
    assert lines[1] == "  9 euros    [finetune-task 1a]" and 'in none of the texts: "It is free."' in lines[3]
    assert lines[4].startswith("  read   2. d1  [1] Fees: A visit") and lines[4].endswith("(quoted)")
    assert [text["holds_answer"] for text in shown("noon")["texts"]] == [False, True]
    assert [text["chosen"] for text in shown(choice="[2] Hours")["texts"]] == [False, True]


@pytest.mark.slow
def test_the_base_model_answers_from_the_sample(tmp_path: Path) -> None:
    questions = ["what is the pride of the tiny comic school?", "who founded the fragile mitten course?"]
    config = load_config(SAMPLE_CONFIG, [f"store={tmp_path}"])
    said: list[str] = []
    first, second = ask_questions(config, Asking(questions, base=True, max_new_tokens=8), said.append)
    assert any(line.startswith("qa: ") for line in said), "preparing the corpus shows its progress"
    assert "comic school" in " ".join(text["label"] for text in first["texts"])
    assert "mitten course" in " ".join(text["label"] for text in second["texts"])
    assert first["written"] and second["model"] == "base"
    assert (tmp_path / ".cache" / "corpora").is_dir(), "the prepared corpus is kept"
