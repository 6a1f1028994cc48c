"""Documents and questions in the layout of MuSiQue (Trivedi et al. 2022).

Rows of `id`, `question`, `answer`, `answer_aliases`, `answerable` and `paragraphs: [{"title",
"paragraph_text", "is_supporting"}]`. Every paragraph is a document, and all supporting ones are needed.

Format: https://github.com/StonyBrookNLP/musique
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Question, Tally
from retrieval.readers.documents.layout_types import UNANSWERABLE, FoundDocument, FoundQuestion, Paragraph
from retrieval.readers.files.rows import dicts_of, rows, text_of, texts_of
from retrieval.text.normalize import fold, one_paragraph
from retrieval.text.values import is_empty

EXPECTED = "a row with id, question, answer, paragraphs (title, paragraph_text, is_supporting)"


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each paragraph as a document. Paragraphs without text are counted.

    Raises:
        InputError: a row is broken.
    """
    return (paragraph.found(file) for _, _, _, found in _rows(file) for paragraph, _ in found)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read each row as a question. A question without supporting paragraphs has a reason to be dropped.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value, paragraphs in _rows(file):
        supporting = tuple(dict.fromkeys(paragraph.id for paragraph, supports in paragraphs if supports))
        # Unanswerable questions have no supporting paragraphs, or not all; any of theirs is the context.
        named = supporting or tuple(paragraph.id for paragraph, _ in paragraphs[:1])
        answerable = value.get("answerable") is not False
        aliases = value.get("answer_aliases") or []
        if not isinstance(aliases, list):
            raise InputError(f"{where}: field answer_aliases is no list; expected {EXPECTED}")
        answers = texts_of([value.get("answer"), *aliases], "answer", where) if answerable else ()
        question = Question(
            fold(text_of(value["id"], "id", where)),
            next(iter(named), ""),
            one_paragraph(text_of(value["question"], "question", where)),
            answers,
            file.name,
            row,
            named if len(named) > 1 else (),
        )
        missing = not named or (answerable and not supporting)
        reason = "question_without_its_paragraphs" if missing else "" if answers else UNANSWERABLE
        yield FoundQuestion(where, question, reason)


def _rows(
    file: SourceFile,
) -> Iterator[tuple[str, int, dict[str, Any], list[tuple[Paragraph, bool]]]]:
    """Yield (place, number, row, paragraphs with whether they support the answer)."""
    fields, optional = ("id", "question", "paragraphs"), ("answer", "answer_aliases", "answerable")
    for where, row, value in rows(file, fields, optional, EXPECTED):
        paragraphs = []
        for given in dicts_of(value["paragraphs"], "paragraphs", where):
            title, text = given.get("title"), given.get("paragraph_text", given.get("text"))
            text = "" if is_empty(text) else text_of(text, "paragraphs.paragraph_text", where)
            name = "" if is_empty(title) else fold(text_of(title, "paragraphs.title", where))
            paragraph = Paragraph.identified(where, row, name, text)
            paragraphs.append((paragraph, bool(given.get("is_supporting")) and bool(text)))
        yield where, row, value, paragraphs
