"""Question sets in the layouts of SQuAD and HotpotQA, whose documents come with their questions.

SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): `{"data": [{"title", "paragraphs": [{"context", "qas":
[{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}`, or flat rows of `id`, `title`, `context`,
`question` and `answers: {"text": […], "answer_start": […]}`, as on data set hubs. A paragraph is a document.

HotpotQA (Yang et al. 2018): rows of `_id` (or `id`), `question`, `answer`, `context: [[title, [sentence, …]],
…]` and `supporting_facts: [[title, sentence number], …]`, or both as columns (`{"title": […], "sentences":
[…]}`, `{"title": […], "sent_id": […]}`). A paragraph is a document, and the ones with supporting facts are
needed together.

Documents have no id of their own there: it is the title and a digest of the text, so that the same paragraph
is the same document wherever it occurs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.readers.files.rows import rows, text_of, texts_of
from retrieval.text.normalize import fold

SQUAD = 'an article: {"title": …, "paragraphs": [{"context": …, "qas": […]}]}'
SQUAD_FLAT = "a row with id, context, question, answers"
HOTPOT = "a row with _id, question, answer, context, supporting_facts"


@dataclass(frozen=True)
class Paragraph:
    """A document of such a set, its text unfolded."""

    where: str
    row: int
    title: str
    text: str
    id: str = field(default="")

    def named(self) -> Paragraph:
        """The same with its id."""
        digest = hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return Paragraph(self.where, self.row, self.title, self.text, f"{self.title}#{digest}")


@dataclass(frozen=True)
class Asked:
    """A question of such a set; `why` says why it is dropped, where it is."""

    where: str
    row: int
    id: str
    text: str
    answers: tuple[str, ...]
    oracles: tuple[str, ...]
    span: tuple[int, int] | None = None
    why: str = ""


def squad(file: SourceFile, nested: bool) -> Iterator[tuple[Paragraph, list[Asked]]]:
    """(paragraph, its questions) in file order; in flat rows the paragraph comes again with each question.

    Raises:
        InputError: a row is broken; its place in the file is named.
    """
    if not nested:
        fields = ("id", "context", "question", "answers")
        for where, row, value in rows(file, fields, ("title",), SQUAD_FLAT):
            paragraph = _paragraph(value, where, row, _title(value, where))
            yield paragraph, [_squad_question(value, where, row, paragraph)]
        return
    for where, row, article in rows(file, ("paragraphs",), ("title",), SQUAD, ("data",)):
        title = _title(article, where)
        for number, value in enumerate(_dicts(article["paragraphs"], "paragraphs", where), start=1):
            place = f"{where}, paragraph {number}"
            paragraph = _paragraph(value, place, row, title)
            asked = _dicts(value.get("qas"), "qas", place)
            yield (
                paragraph,
                [
                    _squad_question(question, f"{place}, question {n}", row, paragraph)
                    for n, question in enumerate(asked, start=1)
                ],
            )


def _title(value: dict[str, Any], where: str) -> str:
    title = value.get("title")
    return fold(text_of(title, "title", where).replace("_", " ")) if title else ""


def _paragraph(value: dict[str, Any], where: str, row: int, title: str) -> Paragraph:
    return Paragraph(where, row, title, text_of(value.get("context"), "context", where)).named()


def _squad_question(value: dict[str, Any], where: str, row: int, paragraph: Paragraph) -> Asked:
    key = fold(text_of(value.get("id"), "id", where))
    text = fold(text_of(value.get("question"), "question", where))
    found = value.get("answers")
    if isinstance(found, dict):  # columns instead of rows
        texts, starts = found.get("text"), found.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise InputError(f"{where}: field answers has no lists text and answer_start of equal length")
        found = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    answers = _dicts(found, "answers", where)
    if not answers:  # SQuAD 2.0 asks what the paragraph does not answer
        return Asked(where, row, key, text, (), (paragraph.id,), why="question_unanswerable")
    accepted = texts_of([answer.get("text") for answer in answers], "answers", where)
    first, start = answers[0]["text"], answers[0].get("answer_start")
    span = None
    if isinstance(start, int) and start >= 0 and paragraph.text[start : start + len(first)] == first:
        span = (start, start + len(first))
    return Asked(where, row, key, text, accepted, (paragraph.id,), span)


def hotpotqa(file: SourceFile) -> Iterator[tuple[list[Paragraph], Asked]]:
    """(the paragraphs that come with a question, the question) in file order.

    Raises:
        InputError: a row is broken; its place in the file is named.
    """
    fields = ("question", "answer", "context", "supporting_facts")
    for where, row, value in rows(file, fields, ("_id", "id"), HOTPOT):
        paragraphs = []
        for title, sentences in _pairs(value["context"], ("title", "sentences"), "context", where):
            if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
                raise InputError(f"{where}: field context has a paragraph that is not a list of sentences")
            name, text = text_of(title, "context", where), "".join(sentences)
            if text.strip():
                paragraphs.append(Paragraph(where, row, fold(name), text).named())
        by_title = {paragraph.title: paragraph.id for paragraph in reversed(paragraphs)}
        facts = _pairs(value["supporting_facts"], ("title", "sent_id"), "supporting_facts", where)
        titles = dict.fromkeys(fold(text_of(title, "supporting_facts", where)) for title, _ in facts)
        key = value.get("_id") if value.get("_id") is not None else value.get("id")
        missing = not titles or any(title not in by_title for title in titles)
        yield (
            paragraphs,
            Asked(
                where,
                row,
                fold(text_of(key, "_id", where)),
                fold(text_of(value["question"], "question", where)),
                texts_of(value["answer"], "answer", where),
                tuple(by_title[title] for title in titles if title in by_title),
                why="question_without_its_paragraphs" if missing else "",
            ),
        )


def _dicts(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{where}: field {name} is not a list of objects ({type(value).__name__})")
    return value


def _pairs(value: Any, names: Sequence[str], field: str, where: str) -> list[tuple[Any, Any]]:
    """Pairs given as a list of two, or as two columns."""
    if isinstance(value, dict):
        first, second = (value.get(name) for name in names)
        if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
            return list(zip(first, second, strict=True))
    elif isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
        return [(first, second) for first, second in value]
    raise InputError(f"{where}: field {field} is not a list of pairs ({', '.join(names)})")
