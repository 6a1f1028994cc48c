"""Tables with questions in WikiTableQuestions' layout (Pasupat and Liang 2015).

`data/*.tsv` has the columns `id`, `utterance`, `context` (path of a table's CSV below the root) and
`targetValue` (answers joined by `|`; `\\n` is a newline, `\\p` a pipe, `\\\\` a backslash). The canonical
values of answers are in a column `targetCanon`, or in a tagged file (`tagged_values`), if there is one. The
tables are CSV of any dialect (:mod:`retrieval.readers.tables.csv_tables`), and a cell may hold a newline.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from jora_core.base.errors import InputError
from retrieval.corpus.types import Question, Table, Tally
from retrieval.readers.files.columns import advice
from retrieval.readers.files.packed_lines import text_lines
from retrieval.readers.tables.table_cells import table_in_file
from retrieval.readers.tables.tagged_values import CANONICAL, read_tagged, tagged_file
from retrieval.text.normalize import fold

COLUMNS = ("id", "utterance", "context", "targetValue")

_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "p": "|", "\\": "\\"}


def unescape(text: str) -> str:
    """Return a TSV field with its escapes resolved. An unknown escape is kept unchanged."""
    if "\\" not in text:
        return text
    # One pass over all escapes: replacing them one after another would read `\\n` (backslash, n) as a
    # newline.
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[0]), text)


def read_tables(
    root: Path, tsv: Path, tally: Tally, source: str, keep_unanswerable: bool = False
) -> tuple[dict[str, Table], list[Question]]:
    """Read the tables, by id, and the questions, in file order.

    The id of a table is its path below `root`. Tables without rows and their questions are dropped.

    Args:
        root: the folder that the paths of the `context` column are relative to.
        tsv: the file of questions.
        tally: counts tables, rows and questions, and what is dropped.
        source: the name of the TSV in records.
        keep_unanswerable: whether questions without an answer are returned; else they are dropped.

    Raises:
        InputError: the TSV lacks a column, has a broken row or no rows, or names a table that is missing.
    """
    tables: dict[str, Table | None] = {}
    questions: list[Question] = []
    rows_by_id: dict[str, int] = {}
    lines = text_lines(tsv)
    _, header_line = next(lines, (0, ""))
    header = header_line.split("\t")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        found = ", ".join(header) if header_line else "nothing"
        raise InputError(
            f"{tsv}:1: column {', '.join(missing)} is missing; found {found}; add it to the header"
            f"{advice(tsv, {'table_questions': 'tables.question_columns'}) if header_line else ''}"
        )
    places = [header.index(name) for name in COLUMNS]
    own = header.index(CANONICAL) if CANONICAL in header else None
    beside = tagged_file(root, tsv) if own is None else None
    tagged = {} if beside is None else read_tagged(beside)
    for number, line in lines:
        # The last line of a file edited by hand is often empty.
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(f"{tsv}:{number}: {len(fields)} tab-separated fields, expected {len(header)}")
        key, utterance, context, target = (fields[place] for place in places)
        if key in rows_by_id:
            raise InputError(
                f"{tsv}:{number}: id {key!r} is already used in line {rows_by_id[key]}; ids are unique"
            )
        rows_by_id[key] = number
        text = fold(unescape(utterance))
        # Split first, unescape after: a pipe inside an answer is written `\p`, so it is no separator.
        answers = tuple(filter(None, (fold(unescape(part)) for part in target.split("|"))))
        if not text:
            raise InputError(f"{tsv}:{number}: question {key!r} has no text; fill it in")
        place, field = tagged.get(key, (number, "" if own is None else fields[own]))
        canonical = _canonical(field, answers, f"{beside or tsv}:{place}")
        tally.read["questions"] += 1
        if context not in tables:
            tables[context] = _read_csv(root, context, f"{tsv}:{number}", tally)
        if tables[context] is None:
            tally.dropped["question_of_table_without_rows"] += 1
        elif answers or keep_unanswerable:
            tally.read["questions_unanswerable"] += not answers
            tally.read["questions_with_canonical_values"] += bool(canonical)
            questions.append(Question(key, context, text, answers, source, number, canonical=canonical))
        else:
            tally.dropped["question_unanswerable"] += 1
    if not questions:
        found = ", ".join(f"{count} {reason}" for reason, count in tally.dropped.items() if count)
        said = f"every one is dropped ({found})" if found else "expected a question a line"
        raise InputError(f"{tsv}: no question after the header; {said}")
    return {key: table for key, table in tables.items() if table is not None}, questions


def _canonical(field: str, answers: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return the canonical form of each answer; nothing if the field is empty."""
    if not field:
        return ()
    found = tuple(filter(None, (unescape(part).strip() for part in field.split("|"))))
    if len(found) != len(answers):
        raise InputError(
            f"{where}: {len(found)} values in {CANONICAL}, {len(answers)} in targetValue; expected as many"
        )
    return found


def _table_path(root: Path, key: str) -> Path | None:
    """Return the file below `root` that `key` names, or None.

    An impossible file name, or one that leads out of `root`, names none.
    """
    try:
        # `Path` raises ValueError for a zero byte and OSError for a name that is too long.
        below = PurePath(key)
        path = root / below
        inside = not below.is_absolute() and ".." not in below.parts
        return path if inside and path.is_file() else None
    except (OSError, ValueError):
        return None


def _read_csv(root: Path, key: str, where: str, tally: Tally) -> Table | None:
    """Read a table, or return None if it has no rows below its header."""
    path = _table_path(root, key)
    if path is None:
        raise InputError(
            f"{where}: table {key} does not exist at {root / key}; add the file or mend the context column"
        )
    return table_in_file(path, key, None, tally)
