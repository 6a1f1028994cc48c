"""Documents and questions in the layout of HotpotQA (Yang et al. 2018).

Rows of `_id` (or `id`), `question`, `answer`, `context: [[title, [sentence, …]], …]` and
`supporting_facts: [[title, sentence number], …]`, or the last two as columns (`{"title": […], "sentences":
[…]}`, `{"title": […], "sent_id": […]}`). A paragraph is a document. The paragraphs with
supporting facts are needed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Question, Tally
from retrieval.readers.documents.layout_types import UNANSWERABLE, FoundDocument, FoundQuestion, Paragraph
from retrieval.readers.files.rows import rows, text_of, texts_of
from retrieval.text.normalize import fold, one_paragraph
from retrieval.text.supporting_facts import as_texts
from retrieval.text.words import is_unspaced

_OPTIONAL = ("_id", "id", "answer", "supporting_facts")
EXPECTED = "a row with _id, question, answer, context, supporting_facts"


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each paragraph as a document. Paragraphs without text are counted.

    Raises:
        InputError: a row is broken.
    """
    return (paragraph.found(file) for paragraphs, _ in _rows(file) for paragraph in paragraphs)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read each row as a question. A question whose supporting paragraphs are missing has a reason to be
    dropped.

    Raises:
        InputError: a row is broken.
    """
    return (question for _, question in _rows(file))


def _rows(file: SourceFile) -> Iterator[tuple[list[Paragraph], FoundQuestion]]:
    """Yield each row's paragraphs and its question, in file order."""
    for where, row, value in rows(file, ("question", "context"), _OPTIONAL, EXPECTED):
        absent = [name for name in ("answer", "supporting_facts") if name not in value]
        if absent:
            raise InputError(
                f"{where}: field {', '.join(absent)} is missing, as in HotpotQA's test file; expected "
                f"{EXPECTED}: take the train or dev file"
            )
        paragraphs = []
        for title, sentences in _pairs(value["context"], ("title", "sentences"), "context", where):
            if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
                raise InputError(f"{where}: field context has a paragraph that is not a list of sentences")
            name, text = text_of(title, "context", where), joined_sentences(sentences)
            made = Paragraph.identified(where, row, fold(name), text if text.strip() else "")
            paragraphs.append(made._replace(sentences=tuple(sentences)))
        yield paragraphs, _question(file, where, row, value, paragraphs)


def _question(
    file: SourceFile, where: str, row: int, value: dict[str, Any], paragraphs: Sequence[Paragraph]
) -> FoundQuestion:
    # Facts name a paragraph by its title; of two with one title, the first is meant.
    with_text = [paragraph for paragraph in paragraphs if paragraph.text]
    by_title = {paragraph.title: paragraph.id for paragraph in reversed(with_text)}
    facts = _pairs(value["supporting_facts"] or [], ("title", "sent_id"), "supporting_facts", where)
    named = [(fold(text_of(title, "supporting_facts", where)), number) for title, number in facts]
    titles = dict.fromkeys(title for title, _ in named)
    # Some numbers are beyond the last sentence. They are facts as well, which nobody can name.
    supporting = [
        (by_title[title], _sentence_number(number, where)) for title, number in named if title in by_title
    ]
    missing = not titles or any(title not in by_title for title in titles)
    oracles = tuple(by_title[title] for title in titles if title in by_title)
    answers = texts_of(value["answer"], "answer", where)
    key = value.get("_id") if value.get("_id") is not None else value.get("id")
    question = Question(
        fold(text_of(key, "_id", where)),
        next(iter(oracles), ""),
        one_paragraph(text_of(value["question"], "question", where)),
        answers,
        file.name,
        row,
        # A single oracle is named by `context_id` already.
        oracles if len(oracles) > 1 else (),
        facts=tuple(as_texts(dict.fromkeys(supporting))),
    )
    reason = "question_without_its_paragraphs" if missing else "" if answers else UNANSWERABLE
    return FoundQuestion(where, question, reason)


def _sentence_number(value: Any, where: str) -> int:
    # JSON's true is an int in Python.
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InputError(
        f"{where}: field supporting_facts has {value!r} for a sentence number; expected a whole number"
    )


def joined_sentences(sentences: Sequence[str]) -> str:
    """Join the sentences of a paragraph, with a blank where neither of two neighbours has white space.

    HotpotQA's sentences begin with their own blank, those of 2WikiMultihopQA do not. Languages that are
    written without blanks get none.
    """
    text = ""
    for sentence in sentences:
        ends = (text[-1:], sentence[:1])
        touching = all(ends) and not any(end.isspace() or is_unspaced(end) for end in ends)
        text += " " + sentence if touching else sentence
    return text


def _pairs(value: Any, names: Sequence[str], field: str, where: str) -> list[tuple[Any, Any]]:
    """Return pairs that are given as lists of two, or as two columns."""
    if isinstance(value, dict):
        first, second = (value.get(name) for name in names)
        if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
            return list(zip(first, second, strict=True))
    elif isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
        return [(first, second) for first, second in value]
    raise InputError(f"{where}: field {field} is not a list of pairs ({', '.join(names)})")
