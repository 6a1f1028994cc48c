"""Documents and questions in the layout of MS MARCO's question answering (Nguyen et al. 2016).

Rows of `query`, `query_id`, `answers` and `passages`, which are columns (`{"passage_text": […],
"is_selected": […]}`) or a list of objects. Every passage is a document. One selected passage is enough to
answer. The answer `No Answer Present.` means that the passages do not answer the question.

Format: https://huggingface.co/datasets/microsoft/ms_marco
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Question, Tally
from retrieval.readers.documents.layout_types import UNANSWERABLE, FoundDocument, FoundQuestion, Paragraph
from retrieval.readers.files.rows import rows, text_of, text_or_empty, texts_of
from retrieval.text.normalize import fold, one_paragraph
from retrieval.text.values import is_empty

EXPECTED = "a row with query, passages (passage_text, is_selected), answers"
NO_ANSWER = "No Answer Present."


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each passage as a document.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in _rows(file):
        for passage, _ in _passages(value["passages"], where, row):
            yield passage.found(file)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read each row as a question. One without a selected passage comes with the reason to drop it.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in _rows(file):
        passages = list(_passages(value["passages"], where, row))
        selected = [passage.id for passage, is_selected in passages if is_selected]
        answers = tuple(a for a in texts_of(value.get("answers"), "answers", where) if a != NO_ANSWER)
        # A question that nothing answers is about the first passage, which the search engine ranked best.
        about = selected if answers else [passage.id for passage, _ in passages[:1]]
        key = value.get("query_id")
        question = Question(
            f"{file.name}:{row}" if is_empty(key) else fold(text_of(key, "query_id", where)),
            next(iter(about), ""),
            one_paragraph(text_of(value["query"], "query", where)),
            answers,
            file.name,
            row,
            tuple(dict.fromkeys(about)) if len(about) > 1 else (),
            needs_all=False,
        )
        missing = "" if about else "question_without_its_paragraphs"
        yield FoundQuestion(where, question, missing or ("" if answers else UNANSWERABLE))


def _rows(file: SourceFile) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for where, row, value in rows(file, ("query", "passages"), ("query_id", "answers"), EXPECTED):
        if isinstance(value["query"], dict):
            raise InputError(
                f"{where}: one object of columns instead of rows; convert it with "
                "MS MARCO's converttowellformed.py"
            )
        yield where, row, value


def _passages(value: Any, where: str, row: int) -> Iterator[tuple[Paragraph, bool]]:
    """Yield each passage, and whether it was selected as an answer."""
    if isinstance(value, dict):
        texts, marks = value.get("passage_text"), value.get("is_selected")
        if isinstance(texts, list) and isinstance(marks, list) and len(texts) == len(marks):
            value = [{"passage_text": t, "is_selected": m} for t, m in zip(texts, marks, strict=True)]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{where}: field passages has no passage_text and is_selected; expected {EXPECTED}")
    for item in value:
        if "passage_text" not in item:
            raise InputError(f"{where}: field passages.passage_text is missing; expected {EXPECTED}")
        text = text_or_empty(item["passage_text"], "passages.passage_text", where)
        yield Paragraph.identified(where, row, "", text), item.get("is_selected") in (1, True)
