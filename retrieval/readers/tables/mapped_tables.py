"""Tables with questions in any files, where mappings of columns say which field is what.

Three forms: each row brings its table along; tables are rows of one corpus and questions of another; or each
table is a file of its own, which the questions name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Question, Table, Tally
from retrieval.readers.files.columns import mapped_rows
from retrieval.readers.files.rows import text_of, texts_of
from retrieval.readers.tables.table_cells import rows_of, table_in_file, table_of
from retrieval.settings.columns import TableColumns, TableQuestionColumns
from retrieval.text.normalize import fold
from retrieval.text.values import is_empty

_TABLE = "tables.columns"
_QUESTION = "tables.question_columns"
_DROPPED = "question_of_table_without_rows"


def tables_with_questions(
    files: Sequence[SourceFile],
    columns: TableColumns,
    question_columns: TableQuestionColumns,
    tally: Tally,
    keep_unanswerable: bool,
) -> tuple[dict[str, Table], list[Question]]:
    """Read rows that hold a question and its table. Return the tables, by id, and the questions.

    Args:
        files: the files.
        columns: the columns of the table.
        question_columns: the columns of the question.
        tally: counts tables, rows and questions, and what is dropped.
        keep_unanswerable: whether questions without an answer are returned; else they are dropped.

    Raises:
        InputError: a row is broken, an id is used twice, or there is no question.
    """
    tables: dict[str, Table | None] = {}
    content: dict[str, bytes] = {}

    def found() -> Iterator[_FoundQuestion]:
        for file in files:
            asked = mapped_rows(file, question_columns, _QUESTION, ("question",))
            shown = mapped_rows(file, columns, _TABLE, ("cells",))
            for (where, row, value), (_, _, cells) in zip(asked, shown, strict=True):
                key, lines, digest = _identified(cells, columns.id is not None, where)
                if content.setdefault(key, digest) != digest:
                    raise InputError(
                        f"{where}: table id {key!r} already belongs to a table of other cells; make "
                        f"{_TABLE}.id "
                        "distinct, or leave it out"
                    )
                if key not in tables:
                    tables[key] = table_of(key, lines, _title(cells), where, tally)
                yield where, row, value, file, key

    questions = _questions(found(), tables, tally, keep_unanswerable, files)
    return {key: table for key, table in tables.items() if table is not None}, questions


def tables_and_questions(
    files: Sequence[SourceFile],
    columns: TableColumns | None,
    question_files: Sequence[SourceFile],
    question_columns: TableQuestionColumns,
    tally: Tally,
    keep_unanswerable: bool,
) -> tuple[dict[str, Table], list[Question]]:
    """Read tables, and questions that name them. Return the tables, by id, and the questions.

    Args:
        files: the tables' files.
        columns: the columns of the tables; None if each file is a table, whose id is its name.
        question_files: the questions' files.
        question_columns: the columns of the questions.
        tally: counts tables, rows and questions, and what is dropped.
        keep_unanswerable: whether questions without an answer are returned; else they are dropped.

    Raises:
        InputError: a row is broken, an id is used twice, a question names no table, or there is no question.
    """
    tables: dict[str, Table | None] = {}
    whole: dict[str, SourceFile] = {}
    if columns is None:
        whole = {file.name: file for file in files}
    else:
        for file in files:
            for where, _, value in mapped_rows(file, columns, _TABLE, ("id", "cells")):
                key, lines, _ = _identified(value, True, where)
                if key in tables:
                    raise InputError(f"{where}: table id {key!r} is already used; ids are unique")
                tables[key] = table_of(key, lines, _title(value), where, tally)
    named: set[str] = set()

    def found() -> Iterator[_FoundQuestion]:
        for file in question_files:
            for where, row, value in mapped_rows(file, question_columns, _QUESTION, ("question", "table_id")):
                key = fold(text_of(value["table_id"], "table_id", where))
                known = whole if columns is None else tables
                if key not in known:
                    raise InputError(
                        f"{where}: the question names table {key!r}, which does not "
                        f"exist{_nearest(key, known)}"
                    )
                if key not in tables:  # only the files that a question names are read
                    tables[key] = table_in_file(whole[key].path, key, None, tally)
                named.add(key)
                yield where, row, value, file, key

    questions = _questions(found(), tables, tally, keep_unanswerable, question_files)
    tally.dropped["table_without_a_question"] += len((whole or tables).keys() - named)
    return {key: table for key, table in tables.items() if table is not None and key in named}, questions


#: (Place for errors, row, values by field, file, id of the table).
_FoundQuestion = tuple[str, int, Mapping[str, Any], SourceFile, str]


def _questions(
    found: Iterator[_FoundQuestion],
    tables: Mapping[str, Table | None],
    tally: Tally,
    keep_unanswerable: bool,
    files: Sequence[SourceFile],
) -> list[Question]:
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for where, row, value, file, key in found:
        tally.read["questions"] += 1
        name = fold(text_of(value["id"], "id", where))
        if name in seen:
            raise InputError(f"{where}: question id {name!r} is already used at {seen[name]}; ids are unique")
        seen[name] = where
        answers = tuple(map(fold, texts_of(value["answers"], f"answers of question {name!r}", where)))
        question = Question(
            name, key, fold(text_of(value["question"], "question", where)), answers, file.name, row
        )
        if tables[key] is None:
            tally.dropped[_DROPPED] += 1
        elif answers or keep_unanswerable:
            tally.read["questions_unanswerable"] += not answers
            questions.append(question)
        else:
            tally.dropped["question_unanswerable"] += 1
    if not questions:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tally.dropped.items() if count)
        named = ", ".join(str(file.path) for file in files[:3])
        raise InputError(
            f"{named}: no question is left{f' ({reasons})' if reasons else ''}; expected one a row"
        )
    return questions


def _identified(value: Mapping[str, Any], named: bool, where: str) -> tuple[str, list[list[Any]], bytes]:
    """Return the id of a table, its rows, and a digest of its cells."""
    lines = rows_of(value["cells"], value.get("header"), where)
    digest = hashlib.sha256(repr(lines).encode("utf-8", "surrogatepass"))
    # Questions repeat their table, so one without an id is known by its cells.
    key = fold(text_of(value["id"], "id", where)) if named else f"table#{digest.hexdigest()[:12]}"
    return key, lines, digest.digest()


def _title(value: Mapping[str, Any]) -> str:
    title = value.get("title")
    return "" if is_empty(title) else str(title)


def _nearest(key: str, known: Collection[str]) -> str:
    """Return a proposal for an error message: the id of a table that may be meant."""
    for name in known:
        path = PurePosixPath(name)
        if key in (path.name, path.stem, str(path.with_suffix(""))):
            return f"; did you mean {name!r}?"
    near = get_close_matches(key, known, 1)
    some = ", ".join(repr(name) for name in sorted(known)[:3])
    return f"; did you mean {near[0]!r}?" if near else f"; there are {some}"
