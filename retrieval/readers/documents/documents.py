"""Documents `{"id", "title"?, "text", "time"?}` and questions `{"id", "document_id", "question", "answers",
"time"?}`, as JSON lines, a JSON list or Parquet; documents also as files of text (`texts`), both also in the
layouts of SQuAD and HotpotQA (`layouts`).

`answers` is a list of accepted answers, the first one is taught. `document_id` may be a list of documents
that only together hold the answer. A `time` is a number of seconds since 1970 or ISO 8601 text: a question
never sees a document that is later than itself.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Literal

from jora_core.base.errors import InputError
from retrieval.corpus.chunking import Chunker, chunk_document
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Question, Tally
from retrieval.readers.documents import squad_hotpotqa, text_files
from retrieval.readers.files.rows import field_names, rows, text_of, texts_of
from retrieval.text.normalize import fold
from retrieval.text.times import parse_time

Layout = Literal["text", "rows", "squad", "squad-rows", "hotpotqa"]

DOCUMENT_FIELDS = ("id", "text")
QUESTION_FIELDS = ("id", "document_id", "question", "answers")


def read_documents(
    files: Sequence[SourceFile], tally: Tally, chunker: Chunker | None = None, layout: str = "auto"
) -> dict[str, Document]:
    """The documents by id, in file order; with a chunker, longer ones as their chunks.

    Raises:
        InputError: as `stream_documents`.
    """
    return {document.id: document for document in stream_documents(files, tally, chunker, layout)}


def stream_documents(
    files: Sequence[SourceFile], tally: Tally, chunker: Chunker | None = None, layout: str = "auto"
) -> Iterator[Document]:
    """The documents in file order, each id once; with a chunker, longer ones as their chunks.

    `read["documents"]` counts what the files hold; all of it is given, or counted in `dropped` as
    `document_…`.
    Raises:
        InputError: a row is broken, an id is used twice, a text is empty, or there is no document at all.
    """
    seen: dict[str, tuple[int, int]] = {}
    for number, file in enumerate(files):
        own_ids = True
        for where, document, raw in _documents(file, layout, tally):
            tally.read["documents"] += 1
            own_ids = not isinstance(where, _Repeatable)
            if document.id in seen:
                if not own_ids:
                    tally.dropped["document_repeated"] += 1
                    continue
                first, row = seen[document.id]
                raise InputError(
                    f"{where}: document id {document.id!r} is already used at {files[first].name}:{row}"
                )
            if not document.text:
                tally.dropped["document_without_text"] += 1
                continue
            seen[document.id] = (number, document.row)
            if chunker is None:
                yield document
                continue
            chunks = chunk_document(document, raw, chunker)
            tally.read["chunks"] += len(chunks)
            yield from chunks
    if not seen:
        names = ", ".join(str(file.path) for file in files[:3])
        raise InputError(f"{names}: no documents; expected a document a row")


class _Repeatable(str):
    """The place of a document whose id is made of its content: that it comes again is no mistake."""


def _documents(file: SourceFile, layout: str, tally: Tally) -> Iterator[tuple[str, Document, str]]:
    """(place for errors, document, unfolded text) of one file."""
    kind = layout_of(file, layout)
    if kind == "text":
        title, text = text_files.read_text_file(file, tally)
        yield str(file.path), Document(file.name, title, fold(text), file.name, 1), text
    elif kind == "rows":
        expected = "an object with " + ", ".join(DOCUMENT_FIELDS)
        for where, row, value in rows(file, DOCUMENT_FIELDS, ("title", "time"), expected):
            title = value.get("title")
            if title is not None and not isinstance(title, (str, int)):
                raise InputError(f"{where}: field title is {type(title).__name__}, expected text")
            text = text_of(value["text"], "text", where)
            key = fold(text_of(value["id"], "id", where))
            since = parse_time(value.get("time"), "time", where)
            yield where, Document(key, fold(str(title or "")), fold(text), file.name, row, since), text
    else:
        found = (
            (p for group, _ in squad_hotpotqa.hotpotqa(file) for p in group)
            if kind == "hotpotqa"
            else (p for p, _ in squad_hotpotqa.squad(file, nested=kind == "squad"))
        )
        for p in found:
            yield _Repeatable(p.where), Document(p.id, p.title, fold(p.text), file.name, p.row), p.text


def read_questions(
    files: Sequence[SourceFile], documents: Container[str], tally: Tally, layout: str = "auto"
) -> list[Question]:
    """The questions in file order.

    Raises:
        InputError: as `stream_questions`, or there is no question.
    """
    questions = list(stream_questions(files, documents, tally, layout))
    if not questions:
        raise no_questions(files)
    return questions


def no_questions(files: Sequence[SourceFile]) -> InputError:
    """The one line for files without a question."""
    names = ", ".join(str(file.path) for file in files[:3])
    return InputError(f"{names}: no questions; expected a question a row")


def stream_questions(
    files: Sequence[SourceFile], documents: Container[str], tally: Tally, layout: str = "auto"
) -> Iterator[Question]:
    """The questions in file order; `documents` holds the ids of the (whole) documents.

    `read["questions"]` counts what the files hold; all of it is given, or counted in `dropped` as
    `question_…`.
    Raises:
        InputError: a row is broken, an id is used twice, or the document does not exist.
    """
    seen: dict[str, tuple[int, int]] = {}
    for number, file in enumerate(files):
        for where, question, why in _questions(file, layout):
            tally.read["questions"] += 1
            if question.id in seen:
                first, row = seen[question.id]
                raise InputError(
                    f"{where}: question id {question.id!r} is already used at {files[first].name}:{row}"
                )
            seen[question.id] = (number, question.row)
            if why:
                tally.dropped[why] += 1
                continue
            for name in question.oracle_ids:
                if name not in documents:
                    raise InputError(
                        f"{where}: question {question.id!r} names document {name!r}, which does not exist"
                    )
            yield question


def _questions(file: SourceFile, layout: str) -> Iterator[tuple[str, Question, str]]:
    """(place for errors, question, why it is dropped or "") of one file."""
    kind = layout_of(file, layout)
    if kind == "text":
        raise InputError(f"{file.path}: a text file holds no questions; expected .jsonl, .json or .parquet")
    if kind == "rows":
        expected = "an object with " + ", ".join(QUESTION_FIELDS)
        for where, row, value in rows(file, QUESTION_FIELDS, ("time",), expected):
            key = fold(text_of(value["id"], "id", where))
            named = _named(value["document_id"], where)
            answers = texts_of(value["answers"], f"answers of question {key!r}", where)
            text = fold(text_of(value["question"], "question", where))
            asked = parse_time(value.get("time"), "time", where)
            first, *more = named
            oracles = named if more else ()
            yield where, Question(key, first, text, answers, file.name, row, oracles, asked), ""
        return
    found = (
        (asked for _, asked in squad_hotpotqa.hotpotqa(file))
        if kind == "hotpotqa"
        else (asked for _, group in squad_hotpotqa.squad(file, nested=kind == "squad") for asked in group)
    )
    for q in found:
        first = next(iter(q.oracles), "")
        several = q.oracles if len(q.oracles) > 1 else ()
        question = Question(q.id, first, q.text, q.answers, file.name, q.row, several, span=q.span)
        yield q.where, question, q.why


def _named(value: object, where: str) -> tuple[str, ...]:
    """The documents that a question names, each once."""
    if not isinstance(value, list):
        return (fold(text_of(value, "document_id", where)),)
    if not value:
        raise InputError(f"{where}: field document_id is an empty list; name at least one document")
    return tuple(dict.fromkeys(fold(text_of(item, "document_id", where)) for item in value))


def layout_of(file: SourceFile, layout: str) -> Layout:
    """How a file is read: as `layout` (`documents`, `squad`, `hotpotqa`) says, or by its name and fields."""
    if file.path.suffix.lower() in text_files.SUFFIXES:
        return "text"
    if layout == "documents":
        return "rows"
    try:
        names = field_names(file, ("data", "paragraphs", "supporting_facts"))
    except InputError:
        names = []  # whoever reads the file's rows says better what is wrong with it
    if layout == "hotpotqa" or (layout == "auto" and "supporting_facts" in names):
        return "hotpotqa"
    if {"data", "paragraphs"} & set(names):
        return "squad"
    if layout == "squad":
        return "squad-rows" if names else "squad"
    return "squad-rows" if {"context", "question", "answers"} <= set(names) else "rows"
