"""Documents and questions in the simplified layout of Natural Questions (Kwiatkowski et al. 2019).

Rows of `question_text`, `document_text` (tokens with blanks between them, HTML tags among them),
`long_answer_candidates` and `annotations`. The outermost candidates of a page are its documents, without
tags. The answers are the short answers, or yes or no. A page without a long answer does not answer its
question. Rows of the data set hub have `question.text`, `document.tokens` and lists as columns.

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
_HUB_FIELDS = ("id", "document", "question")
_SPOKEN = {"YES": "yes", "NO": "no"}


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each outermost candidate for a long answer as a document.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in _rows(file):
        for passage in _passages(value, where, row).values():
            yield passage.found(file)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read each row as a question. One with a long answer only comes with the reason to drop it.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in _rows(file):
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


def _rows(file: SourceFile) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the rows of a file in the simplified layout, also those of the data set hub."""
    for where, row, value in rows(file, (), ("example_id", *_FIELDS, *_HUB_FIELDS), EXPECTED):
        if isinstance(value.get("document"), dict):
            value = _simplified(value, where)
        missing = [name for name in _FIELDS if value.get(name) is None]
        if missing:
            raise InputError(f"{where}: field {', '.join(missing)} is missing; expected {EXPECTED}")
        yield where, row, value


def _simplified(value: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row of the data set hub, whose lists are columns, in the simplified layout."""
    question, document, given = value.get("question"), value["document"], value.get("annotations")
    if not isinstance(question, dict) or not isinstance(given, dict):
        raise InputError(f"{where}: fields question and annotations are no objects; expected {EXPECTED}")
    tokens = [str(token.get("token")) for token in _as_rows(document.get("tokens"), "document.tokens", where)]
    annotations = []
    for annotation in _as_rows(given, "annotations", where):
        spoken = annotation.get("yes_no_answer")
        annotations.append(
            {
                "long_answer": annotation.get("long_answer"),
                "short_answers": _as_rows(
                    annotation.get("short_answers"), "annotations.short_answers", where
                ),
                # The hub has numbers for the names.
                "yes_no_answer": {0: "NO", 1: "YES"}.get(spoken) if isinstance(spoken, int) else spoken,
            }
        )
    candidates = value.get("long_answer_candidates")
    return {
        "example_id": value.get("id"),
        "question_text": question.get("text"),
        # A blank within a tag would part it into two tokens.
        "document_text": " ".join(token.replace(" ", "_") for token in tokens),
        "long_answer_candidates": _as_rows(candidates, "long_answer_candidates", where),
        "annotations": annotations,
    }


def _as_rows(value: Any, field: str, where: str) -> list[dict[str, Any]]:
    """Return a list of objects that may be given as an object of equally long lists."""
    if not isinstance(value, dict):
        return dicts_of(value or [], field, where)
    columns = {name: cells for name, cells in value.items() if isinstance(cells, list)}
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        raise InputError(f"{where}: the lists of field {field} have different lengths")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


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
