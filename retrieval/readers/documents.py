"""Documents `{"id", "title"?, "text", "time"?}` and questions `{"id", "document_id", "question", "answers",
"time"?}`.

Both as JSON lines or Parquet with the same names; `answers` is a list of accepted answers, the first one is
taught. `document_id` may be a list of documents that only together hold the answer. A `time` is a number of
seconds since 1970 or ISO 8601 text: a question never sees a document that is later than itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from retrieval.corpus import Document, Question, Tally
from retrieval.errors import InputError
from retrieval.readers.lines import json_objects
from retrieval.records import read_rows
from retrieval.sources import SourceFile
from retrieval.text import fold
from retrieval.times import parse_time

DOCUMENT_FIELDS = ("id", "text")
QUESTION_FIELDS = ("id", "document_id", "question", "answers")


def read_documents(files: Sequence[SourceFile], tally: Tally) -> dict[str, Document]:
    """The documents by id, in file order.

    Raises:
        InputError: a row is broken, an id is used twice, a text is empty, or there is no document at all.
    """
    documents: dict[str, Document] = {}
    for where, file, row, value in _rows(files, DOCUMENT_FIELDS, ("title", "time")):
        key = _text(value, "id", where)
        if key in documents:
            first = documents[key]
            raise InputError(f"{where}: document id {key!r} is already used at {first.source}:{first.row}")
        title = fold(str(value.get("title") or ""))
        since = parse_time(value.get("time"), "time", where)
        documents[key] = Document(key, title, _text(value, "text", where), file.name, row, since)
        tally.read["documents"] += 1
    if not documents:
        names = ", ".join(str(file.path) for file in files[:3])
        raise InputError(f"{names}: no documents; expected a document a row")
    return documents


def read_questions(
    files: Sequence[SourceFile], documents: dict[str, Document], tally: Tally
) -> list[Question]:
    """The questions in file order.

    Raises:
        InputError: a row is broken, an id is used twice, the document does not exist, or there is no
            question.
    """
    questions: dict[str, Question] = {}
    for where, file, row, value in _rows(files, QUESTION_FIELDS, ("time",)):
        key = _text(value, "id", where)
        if key in questions:
            first = questions[key]
            raise InputError(f"{where}: question id {key!r} is already used at {first.source}:{first.row}")
        named = _named(value, where)
        for document in named:
            if document not in documents:
                raise InputError(
                    f"{where}: question {key!r} names document {document!r}, which does not exist"
                )
        answers = value["answers"]
        if isinstance(answers, str):
            answers = [answers]
        if not isinstance(answers, list) or not answers or not all(_is_filled(a) for a in answers):
            raise InputError(
                f"{where}: field answers of question {key!r} is not a list of texts; give at least one"
            )
        accepted = tuple(dict.fromkeys(fold(answer) for answer in answers))
        text = _text(value, "question", where)
        asked = parse_time(value.get("time"), "time", where)
        document, *others = named
        oracles = named if others else ()
        questions[key] = Question(key, document, text, accepted, file.name, row, oracles, asked)
        tally.read["questions"] += 1
    if not questions:
        names = ", ".join(str(file.path) for file in files[:3])
        raise InputError(f"{names}: no questions; expected a question a row")
    return list(questions.values())


def _rows(
    files: Sequence[SourceFile], fields: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, SourceFile, int, dict[str, Any]]]:
    """(place for errors, file, 1-based row, row) of all files, each row with all `fields`."""
    expected = "an object with " + ", ".join(fields)
    for file in files:
        rows: Iterator[tuple[int, dict[str, Any]]]
        if file.path.suffix == ".parquet":
            rows = enumerate(read_rows(file.path, fields, optional), start=1)
        else:
            rows = json_objects(file.path, expected)
        for row, value in rows:
            where = f"{file.path}:{row}"
            missing = [name for name in fields if value.get(name) is None]
            if missing:
                raise InputError(f"{where}: field {', '.join(missing)} is missing; expected {expected}")
            yield where, file, row, value


def _named(value: dict[str, Any], where: str) -> tuple[str, ...]:
    """The documents that a question names, each once."""
    found = value["document_id"]
    if not isinstance(found, list):
        return (_text(value, "document_id", where),)
    if not found:
        raise InputError(f"{where}: field document_id is an empty list; name at least one document")
    return tuple(dict.fromkeys(_text({"document_id": item}, "document_id", where) for item in found))


def _text(value: dict[str, Any], field: str, where: str) -> str:
    found = value[field]
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if not isinstance(found, str) or not found.strip():
        raise InputError(f"{where}: field {field} is empty or no text ({type(found).__name__}); fill it in")
    return fold(found)


def _is_filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
