"""Documents and questions as rows of JSON lines, a JSON list or Parquet, in separate files.

A document is `{"id", "title"?, "text", "time"?}`, a question is `{"id", "document_id", "question", "answers",
"time"?}`. `answers` is a list of accepted answers, of which the first is taught. An empty list or null means
that the document does not answer the question. `document_id` may be a list of documents that only together
hold the answer. A `time` is a number of seconds since 1970 or a date, as in conversations.
"""

from __future__ import annotations

from collections.abc import Iterator

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Question, Tally
from retrieval.readers.documents.layout_types import UNANSWERABLE, FoundDocument, FoundQuestion
from retrieval.readers.files.fields import moment_of
from retrieval.readers.files.rows import rows, text_of, text_or_empty, texts_of
from retrieval.text.normalize import composed, fold, keep_lines, one_paragraph
from retrieval.text.values import is_empty

DOCUMENT_FIELDS = ("id", "text")
QUESTION_FIELDS = ("id", "document_id", "question", "answers")


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each row as a document.

    Raises:
        InputError: a row is broken.
    """
    expected = "an object with " + ", ".join(DOCUMENT_FIELDS)
    mapped_by = {"documents": "qa.columns"}
    # A text may be missing, but a row without the field is a mistake.
    found = rows(file, DOCUMENT_FIELDS, ("title", "time"), expected, mapped_by=mapped_by, nullable=("text",))
    for where, row, value in found:
        title = value.get("title")
        # A numeric title (a year) is common where rows were exported from a table.
        title = "" if is_empty(title) else text_of(title, "title", where)
        text = text_or_empty(value["text"], "text", where)
        key = composed(fold(text_of(value["id"], "id", where)))
        since = moment_of(value.get("time"), "time", where)
        document = Document(key, fold(title), keep_lines(text), file.name, row, since)
        yield FoundDocument(where, document, text)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read each row as a question.

    Raises:
        InputError: a row is broken.
    """
    expected = "an object with " + ", ".join(QUESTION_FIELDS)
    mapped_by = {"questions": "qa.question_columns"}
    for where, row, value in rows(
        file, QUESTION_FIELDS[:3], ("answers", "time"), expected, mapped_by=mapped_by
    ):
        key = fold(text_of(value["id"], "id", where))
        first, *more = named = _document_ids(value["document_id"], where)
        if "answers" not in value:
            raise InputError(f"{where}: field answers is missing; expected {expected}, or null for no answer")
        answers = texts_of(value["answers"], f"answers of question {key!r}", where)
        text = one_paragraph(text_of(value["question"], "question", where))
        time = moment_of(value.get("time"), "time", where)
        oracles = named if more else ()
        question = Question(key, first, text, answers, file.name, row, oracles, time)
        yield FoundQuestion(where, question, "" if answers else UNANSWERABLE)


def _document_ids(value: object, where: str) -> tuple[str, ...]:
    """Return the ids of the documents that a question names, without repeats."""
    if not isinstance(value, list):
        return (composed(fold(text_of(value, "document_id", where))),)
    if not value:
        raise InputError(f"{where}: field document_id is an empty list; name at least one document")
    return tuple(dict.fromkeys(composed(fold(text_of(item, "document_id", where))) for item in value))
