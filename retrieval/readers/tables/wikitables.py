"""Tables with questions in WikiTableQuestions' layout (Pasupat and Liang 2015).

`data/*.tsv` has the columns `id`, `utterance`, `context` (path of a table's CSV below the root) and
`targetValue` (answers joined by `|`; `\\n` is a newline, `\\p` a pipe, `\\\\` a backslash). In the CSV, `\\"`
and `\\\\` are escaped inside quotes and a cell may hold a newline.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.types import Question, Table, Tally
from retrieval.readers.files.packed_lines import text_lines
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


def read_tables(root: Path, tsv: Path, tally: Tally, source: str) -> tuple[dict[str, Table], list[Question]]:
    """Read the tables, by id, and the questions, in file order.

    The id of a table is its path below `root`.

    Args:
        root: the folder that the paths of the `context` column are relative to.
        tsv: the file of questions.
        tally: counts tables, rows and questions.
        source: the name of the TSV in records.

    Raises:
        InputError: the TSV lacks a column, has a broken row or no rows, or names a table that is missing or
            empty.
    """
    tables: dict[str, Table] = {}
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
        )
    places = [header.index(name) for name in COLUMNS]
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
        answers = tuple(fold(unescape(part)) for part in target.split("|"))
        if not text or not any(answers):
            raise InputError(
                f"{tsv}:{number}: question {key!r} has no {'answer' if text else 'text'}; fill it in"
            )
        if context not in tables:
            tables[context] = _read_csv(root, context, f"{tsv}:{number}", tally)
        questions.append(Question(key, context, text, answers, source, number))
        tally.read["questions"] += 1
    if not questions:
        raise InputError(f"{tsv}: no question after the header; expected a question a line")
    return tables, questions


def _is_table(root: Path, key: str) -> bool:
    """Return whether `key` names a file below `root`.

    An impossible file name, or one that leads out of `root`, does not.
    """
    try:
        # `Path` raises ValueError for a zero byte and OSError for a name that is too long.
        return not Path(key).is_absolute() and ".." not in Path(key).parts and (root / key).is_file()
    except (OSError, ValueError):
        return False


def _read_csv(root: Path, key: str, where: str, tally: Tally) -> Table:
    path = root / key
    if not _is_table(root, key):
        raise InputError(
            f"{where}: table {key} does not exist at {path}; add the file or mend the context column"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            # `doublequote` too: other writers of this layout double their quotes, and the corpus never does.
            parsed = csv.reader(handle, escapechar="\\", doublequote=True)
            # Cells hold newlines, which would break the one-line-a-row form of a prompt.
            rows = [[fold(cell) for cell in row] for row in parsed if row]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start + 1}); save the table as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path}: not a readable CSV table ({error}); mend its quotes") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if len(rows) < 2:
        raise InputError(f"{path}: table with {len(rows)} rows; expected a header and at least one row")
    header = rows[0]
    width = max(len(row) for row in rows)
    ragged = sum(len(row) != len(header) for row in rows)
    tally.read["tables"] += 1
    tally.read["table_rows"] += len(rows) - 1
    tally.read["ragged_rows_padded"] += ragged
    # A prompt shows a table of one width, and some published tables have rows of different lengths.
    padded = [tuple(row + [""] * (width - len(row))) for row in rows]
    return Table(key, padded[0], tuple(padded[1:]))
