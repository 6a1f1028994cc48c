"""Documents and questions in the output format of RAFT's own generator (`raft.py`, arXiv:2403.10131).

Rows of `id`, `question`, `context: {"sentences": [[text, …]], "title": …}`, `oracle_context`, `cot_answer`
and `instruction`, as JSON lines or Parquet. The texts of the context and the oracle's text are documents,
without repeats. The titles are placeholders and are not read. The accepted answer is the text of `cot_answer`
after `<ANSWER>:` (or `##Answer:`). The reasoning before it is not read, because answer styles make their own
quotations. `instruction` repeats the other fields.

Format: https://github.com/ShishirPatil/gorilla/tree/main/raft
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Question, Tally
from retrieval.readers.documents.layout_types import FoundDocument, FoundQuestion, Paragraph
from retrieval.readers.files.rows import rows, text_of, text_or_empty
from retrieval.text.normalize import answer_text, fold, one_paragraph

EXPECTED = "a row with question, context, oracle_context, cot_answer"

#: Marks before the final answer: that of the generator's prompt, and that of the paper.
ANSWER_MARKS = ("<ANSWER>:", "##Answer:")


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read the texts of every row's context as documents, and the oracle's text, which the context may lack.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in _rows(file):
        oracle = text_or_empty(value["oracle_context"], "oracle_context", where)
        # Distractors are drawn from the same documents as oracles: most texts come again in other rows.
        for text in dict.fromkeys([*_context_texts(value["context"], where), oracle]):
            yield Paragraph.identified(where, row, "", text).found(file)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Read each row as a question. A question without a final answer has a reason to be dropped.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in _rows(file):
        oracle = text_or_empty(value["oracle_context"], "oracle_context", where)
        key = value.get("id")
        question = Question(
            f"{file.name}:{row}" if key is None else fold(text_of(key, "id", where)),
            Paragraph.identified(where, row, "", oracle).id,
            one_paragraph(text_of(value["question"], "question", where)),
            tuple(answer for answer in [_final_answer(value.get("cot_answer"), where)] if answer),
            file.name,
            row,
        )
        yield FoundQuestion(where, question, "" if question.answers else "question_without_final_answer")


def _rows(file: SourceFile) -> Iterator[tuple[str, int, dict[str, Any]]]:
    fields = ("question", "context", "oracle_context")
    return rows(file, fields, ("id", "cot_answer"), EXPECTED, nullable=("oracle_context",))


def _context_texts(value: Any, where: str) -> list[str]:
    """Return the texts of a context, which is a list within a list."""
    found = value.get("sentences") if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(texts, list) for texts in found):
        raise InputError(
            f"{where}: field context has no list sentences of lists of texts; expected {EXPECTED}"
        )
    return [text_or_empty(text, "context.sentences", where) for texts in found for text in texts]


def _final_answer(value: Any, where: str) -> str:
    """Return the text after the last answer mark, or "" if the generator wrote no mark."""
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: field cot_answer is {type(value).__name__}, expected text")
    # The last mark, because the reasoning may quote the prompt, which contains the mark too.
    answers = ((value or "").rpartition(mark) for mark in ANSWER_MARKS)
    return next((answer_text(answer) for _, mark, answer in answers if mark), "")
