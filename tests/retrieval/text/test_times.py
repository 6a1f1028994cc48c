"""When things were written, and questions with several documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.threads import fourchan, irc
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.times import parse_time
from tests.retrieval.conftest import link, post
from tests.retrieval.read_all import read_documents, read_questions

Write = Callable[[str, str], Path]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        (float("nan"), None),
        (date(1970, 1, 2), 86_400.0),
        (Decimal("1.5"), 1.5),
        (1_700_000_000, 1_700_000_000.0),
        (0.5, 0.5),
        ("1970-01-02", 86_400.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1970-01-01T00:00:01Z", 1.0),
    ],
)
def test_times_are_numbers_or_iso_text(value: Any, seconds: float | None) -> None:
    assert parse_time(value, "time", "here") == seconds


@pytest.mark.parametrize("value", ["yesterday", True, [1], float("inf"), {"a": 1}])
def test_other_times_are_refused_by_name(value: Any) -> None:
    with pytest.raises(InputError, match=r"f\.jsonl:3: field time is .*expected seconds since 1970"):
        parse_time(value, "time", "f.jsonl:3")


def source(path: Path) -> SourceFile:
    return SourceFile(path, path.name)


def test_documents_and_questions_have_times_and_several_oracles(write: Write) -> None:
    documents = write(
        "d.jsonl",
        '{"id": "a", "text": "one", "time": "1970-01-02"}\n{"id": "b", "text": "two"}\n',
    )
    asked = {"id": "q", "document_id": ["b", "a", "b"], "question": "?", "answers": ["x"], "time": 5}
    questions = write("q.jsonl", json.dumps(asked) + "\n")
    by_id = read_documents([source(documents)], Tally())
    assert (by_id["a"].time, by_id["b"].time) == (86_400.0, None)
    (question,) = read_questions([source(questions)], by_id, Tally())
    assert (question.context_id, question.oracle_ids, question.time) == ("b", ("b", "a"), 5.0)
    for wrong, said in (
        ([], "field document_id is an empty list"),
        (["a", "z"], "names document 'z', which does not exist"),
        (["a", " "], "field document_id is empty or no text"),
    ):
        write("q.jsonl", json.dumps(asked | {"document_id": wrong}) + "\n")
        with pytest.raises(InputError, match=rf"q\.jsonl:1: .*{said}"):
            read_questions([source(questions)], by_id, Tally())


def test_threads_have_times(write: Write) -> None:
    posts = [post(7, "Opening."), post(9, link(7) + "reply", resto=7)]
    path = write("t.ndjson", json.dumps({"posts": posts}) + "\n")
    (thread,) = fourchan.read_threads([("", source(path))], ReaderOptions("error"), Tally())
    assert (thread.time, [p.time for p in thread.posts]) == (7.0, [7.0, 9.0])
    for name, time in (("1970-01-03_01", 172_800.0), ("2004-13-77_01", None), ("log", None)):
        log = write(f"{name}.ascii.txt", "[03:41] <a> hello\n")
        write(f"{name}.annotation.txt", "0 0 -\n")
        (thread,) = irc.read_threads([("", source(log))], ReaderOptions("error"), Tally())
        assert thread.time == time
