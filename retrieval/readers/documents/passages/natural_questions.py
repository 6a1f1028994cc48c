"""Documents and questions in the simplified layout of Natural Questions (Kwiatkowski et al. 2019).

Rows of `question_text`, `document_text` (tokens with blanks between them, HTML tags among them),
`long_answer_candidates` and `annotations`. The outermost candidates of a page are its documents, without
tags. The answers are the short answers, or yes or no. A page without a long answer does not answer its
question.

Format: https://ai.google.com/research/NaturalQuestions/download
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Question, Tally
from retrieval.readers.documents.layout_types import UNANSWERABLE, FoundDocument, FoundQuestion, Paragraph
from retrieval.readers.files.rows import dicts_of, rows, text_of
from retrieval.text.normalize import fold, one_paragraph

EXPECTED = "a row with question_text, document_text, long_answer_candidates, annotations"
_FIELDS = ("question_text", "document_text", "long_answer_candidates", "annotations")
_SPOKEN = {"YES": "yes", "NO": "no"}


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each outermost candidate for a long answer as a document.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in rows(file, _FIELDS, ("example_id",), EXPECTED):
        for passage in _passages(value, where, row).values():
            yield passage.found(file)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read each row as a question. One with a long answer only comes with the reason to drop it.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in rows(file, _FIELDS, ("example_id",), EXPECTED):
        passages = _passages(value, where, row)
        tokens = value["document_text"].split(" ")
        answers: dict[str, None] = {}
        oracles: dict[str, None] = {}
        has_long = False
        for annotation in dicts_of(value["annotations"], "annotations", where):
            start, end = _span(annotation.get("long_answer"), "annotations.long_answer", where)
            if start < 0:
                continue
            has_long = True
            holding = [p.id for (low, high), p in passages.items() if low <= start and end <= high]
            found = [
                _text(tokens, *_span(short, "annotations.short_answers", where))
                for short in dicts_of(
                    annotation.get("short_answers") or [], "annotations.short_answers", where
                )
            ]
            spoken = _SPOKEN.get(str(annotation.get("yes_no_answer")).upper())
            found += [spoken] if spoken else []
            if found:
                answers.update(dict.fromkeys(filter(None, found)))
                oracles.update(dict.fromkeys(holding))
        about = list(oracles) or [passage.id for passage in passages.values()][:1]
        key = value.get("example_id")
        question = Question(
            f"{file.name}:{row}" if key is None else fold(text_of(key, "example_id", where)),
            next(iter(about), ""),
            one_paragraph(text_of(value["question_text"], "question_text", where)),
            tuple(answers) if oracles else (),
            file.name,
            row,
            tuple(about) if len(about) > 1 else (),
            needs_all=False,
        )
        yield FoundQuestion(where, question, _reason(question, has_long, bool(about)))


def _reason(question: Question, has_long: bool, about: bool) -> str:
    """Return why a question is dropped, or ""."""
    if not about:
        return "question_without_its_paragraphs"
    if question.answers:
        return ""
    return "question_with_a_long_answer_only" if has_long else UNANSWERABLE


def _passages(value: dict[str, Any], where: str, row: int) -> dict[tuple[int, int], Paragraph]:
    """Return the outermost candidates of a row by their (first, last + 1) token, without empty ones."""
    tokens = text_of(value["document_text"], "document_text", where).split(" ")
    out = {}
    for candidate in dicts_of(value["long_answer_candidates"], "long_answer_candidates", where):
        if candidate.get("top_level") is False:
            continue
        span = _span(candidate, "long_answer_candidates", where)
        if text := _text(tokens, *span):
            out[span] = Paragraph.identified(where, row, "", text)
    return out


def _span(value: Any, field: str, where: str) -> tuple[int, int]:
    found = value if isinstance(value, dict) else {}
    start, end = found.get("start_token"), found.get("end_token")
    if not isinstance(start, int) or not isinstance(end, int):
        raise InputError(f"{where}: field {field} has no whole numbers start_token and end_token")
    return start, end


def _text(tokens: list[str], start: int, end: int) -> str:
    """Return a range of tokens as text, without tags."""
    kept = (
        token for token in tokens[max(start, 0) : max(end, 0)] if not (token[:1] == "<" and token[-1:] == ">")
    )
    return fold(" ".join(kept))
