"""Documents and questions in the layout of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018).

Nested: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text",
"answer_start"}]}]}]}]}`. Flat, as on data set hubs: rows of `id`, `title`, `context`, `question` and
`answers: {"text": […], "answer_start": […]}`. A paragraph is a document. Flat rows
repeat the paragraph for each of its questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Question, Tally
from retrieval.readers.documents.layout_types import UNANSWERABLE, FoundDocument, FoundQuestion, Paragraph
from retrieval.readers.files.rows import dicts_of, field_names, rows, text_of, text_or_empty, texts_of
from retrieval.readers.files.tables import Contents, any_rows
from retrieval.text.normalize import fold, one_paragraph
from retrieval.text.values import is_empty

NESTED = 'an article: {"title": …, "paragraphs": [{"context": …, "qas": […]}]}'
FLAT = "a row with id, context, question, answers"


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each paragraph as a document.

    Raises:
        InputError: a row is broken.
    """
    return (paragraph.found(file) for paragraph, _ in _paragraphs(file))


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read the questions of each paragraph. A question without an answer has a reason to be dropped.

    Raises:
        InputError: a row is broken.
    """
    return (question for _, questions in _paragraphs(file) for question in questions)


def _paragraphs(file: SourceFile) -> Iterator[tuple[Paragraph, list[FoundQuestion]]]:
    """Yield each paragraph with its questions, in file order."""
    if not _is_nested(file):
        fields, optional = ("id", "context", "question"), ("answers", "title", "is_impossible")
        for where, row, value in rows(file, fields, optional, FLAT, ("data", ""), nullable=("context",)):
            paragraph = _paragraph(value, where, row, _title(value, where))
            yield paragraph, [_question(value, where, paragraph, file)]
        return
    for where, row, article in rows(file, ("paragraphs",), ("title",), NESTED, ("data",)):
        title = _title(article, where)
        for number, value in enumerate(dicts_of(article["paragraphs"], "paragraphs", where), start=1):
            place = f"{where}, paragraph {number}"
            paragraph = _paragraph(value, place, row, title)
            questions = dicts_of(value.get("qas"), "qas", place)
            yield (
                paragraph,
                [
                    _question(question, f"{place}, question {n}", paragraph, file)
                    for n, question in enumerate(questions, start=1)
                ],
            )


def _is_nested(file: SourceFile) -> bool:
    try:
        names = field_names(file, ("data", "paragraphs"))
    except InputError:
        names = []
    if names[-1:] == ["data"]:
        # Some copies have flat rows in the list `data`.
        items = any_rows(file.path, Contents(NESTED, ("data", "")))
        _, _, first = next(items, ("", 0, None))
        return not (isinstance(first, dict) and {"context", "question"} <= first.keys())
    # A file that cannot be looked into is read as nested: the error then shows the published layout.
    return not names or not {"data", "paragraphs"}.isdisjoint(names)


def _title(value: dict[str, Any], where: str) -> str:
    title = value.get("title")
    # SQuAD's titles are names of Wikipedia pages, such as `Super_Bowl_50`.
    return fold(text_of(title, "title", where).replace("_", " ")) if title else ""


def _paragraph(value: dict[str, Any], where: str, row: int, title: str) -> Paragraph:
    if "context" not in value:
        raise InputError(f"{where}: field context is missing; expected {NESTED}")
    return Paragraph.identified(where, row, title, text_or_empty(value["context"], "context", where))


def _question(value: dict[str, Any], where: str, paragraph: Paragraph, file: SourceFile) -> FoundQuestion:
    key = fold(text_of(value.get("id"), "id", where))
    text = one_paragraph(text_of(value.get("question"), "question", where))
    # Some copies of the data give texts alone.
    if "answers" not in value and value.get("is_impossible") is not True:
        raise InputError(f"{where}: field answers is missing; expected a list, empty if there is no answer")
    found = value.get("answers")
    if found is None or isinstance(found, (str, int, float)):
        found = [] if is_empty(found) else [found]
    if isinstance(found, list):
        found = [item if isinstance(item, dict) else {"text": item} for item in found]
    if isinstance(found, dict):  # columns instead of rows
        texts, starts = found.get("text") or [], found.get("answer_start") or []
        starts = starts or [-1] * len(texts)
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise InputError(f"{where}: field answers has no lists text and answer_start of equal length")
        found = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    answers = [a for a in dicts_of(found, "answers", where) if not is_empty(a.get("text"))]
    # The same answer from several annotators is kept once.
    accepted = texts_of([answer.get("text") for answer in answers], "answers", where)
    # SQuAD 2.0 has questions that the paragraph does not answer. Some copies give them an empty answer, or
    # the plausible but wrong ones as answers.
    if value.get("is_impossible") is True or not accepted:
        unanswered = Question(key, paragraph.id, text, (), file.name, paragraph.row)
        return FoundQuestion(where, unanswered, UNANSWERABLE)
    first, start = answers[0]["text"], answers[0].get("answer_start")
    span = None
    # Published offsets are wrong now and then (white space was changed later); those are not used.
    if isinstance(first, str) and isinstance(start, int) and start >= 0:
        end = start + len(first)
        span = (start, end) if paragraph.text[start:end] == first else None
    question = Question(key, paragraph.id, text, accepted, file.name, paragraph.row, span=span)
    return FoundQuestion(where, question)
