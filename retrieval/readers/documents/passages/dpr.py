"""Documents and questions in the training layout of DPR (Karpukhin et al. 2020).

Rows of `question`, `answers`, `positive_ctxs: [{"title", "text"}]`, `negative_ctxs` and
`hard_negative_ctxs`. Every passage is a document. One positive passage is enough to answer.

Format: https://github.com/facebookresearch/DPR#retriever-input-data-format
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Question, Tally
from retrieval.readers.documents.layout_types import UNANSWERABLE, FoundDocument, FoundQuestion, Paragraph
from retrieval.readers.files.rows import dicts_of, rows, text_of, text_or_empty, texts_of
from retrieval.text.normalize import fold, one_paragraph
from retrieval.text.values import is_empty

EXPECTED = "a row with question, answers, positive_ctxs"
_PASSAGES = ("positive_ctxs", "negative_ctxs", "hard_negative_ctxs")


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each passage as a document. Passages without text are counted.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in _rows(file):
        for field in _PASSAGES:
            for passage in _passages(value, field, where, row):
                yield passage.found(file)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read each row as a question. One without a positive passage comes with the reason to drop it.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in _rows(file):
        positive = [passage.id for passage in _passages(value, _PASSAGES[0], where, row) if passage.text]
        key = value.get("id")
        question = Question(
            f"{file.name}:{row}" if is_empty(key) else fold(text_of(key, "id", where)),
            next(iter(positive), ""),
            one_paragraph(text_of(value["question"], "question", where)),
            texts_of(value.get("answers"), "answers", where),
            file.name,
            row,
            tuple(dict.fromkeys(positive)) if len(positive) > 1 else (),
            needs_all=False,
        )
        missing = "" if positive else "question_without_its_paragraphs"
        yield FoundQuestion(where, question, missing or ("" if question.answers else UNANSWERABLE))


def _rows(file: SourceFile) -> Iterator[tuple[str, int, dict[str, Any]]]:
    return rows(file, ("question", "positive_ctxs"), ("id", "answers", *_PASSAGES[1:]), EXPECTED)


def _passages(value: dict[str, Any], field: str, where: str, row: int) -> Iterator[Paragraph]:
    for passage in dicts_of(value.get(field) or [], field, where):
        title = passage.get("title")
        # A passage without text keeps its place, so that it is counted as such.
        text = text_or_empty(passage.get("text"), f"{field}.text", where)
        name = "" if is_empty(title) else fold(text_of(title, f"{field}.title", where))
        yield Paragraph.identified(where, row, name, text)
