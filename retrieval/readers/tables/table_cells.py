"""Find the rows of cells in any value that stands for a table: lists, objects, JSON, Markdown or CSV."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import unpacked_name
from retrieval.corpus.types import Table, Tally
from retrieval.readers.files.csv_dialect import SEPARATORS
from retrieval.readers.files.tables import Contents, any_rows
from retrieval.readers.tables.csv_tables import parse_csv, read_csv
from retrieval.text.normalize import fold
from retrieval.text.values import is_empty, printed_id

_FORMS = (
    "expected a list of rows (lists or objects), an object with header and rows, lists by column, or the "
    "same as JSON, a Markdown table or CSV text"
)
#: Names under which objects hold the header and the rows, in the order in which they are looked for.
_HEADERS = ("header", "headers", "columns", "column_names")
_ROWS = ("rows", "data", "cells", "values")
# The line below a header in Markdown.
_RULE = re.compile(r"\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
# Whatever else a question names is CSV.
_OTHERS = (".xlsx", ".parquet", ".arrow", ".json", ".jsonl", ".ndjson")
_BAR = re.compile(r"(?<!\\)\|")


def table_of(key: str, lines: Sequence[Sequence[Any]], title: str, where: str, tally: Tally) -> Table | None:
    """Make a table of equally wide rows of single lines, or return None if it has no rows below its header.

    Args:
        key: the table's id.
        lines: rows of cells; the first one is the header.
        title: the table's title.
        where: file and row, for errors.
        tally: counts tables and rows, and what is dropped.

    Raises:
        InputError: a cell is no text, number, day or truth value.
    """
    tally.read["tables"] += 1
    if _are_single_lines(lines):
        cells = list(map(tuple, lines))
    else:
        # Most cells are texts, and one of white space is empty either way.
        cells = [
            tuple([fold(cell) if isinstance(cell, str) else cell_text(cell, where) for cell in line])
            for line in lines
        ]
    if len(cells) < 2:
        tally.dropped["table_without_rows"] += 1
        return None
    widths = [len(line) for line in cells]
    width = max(widths)
    tally.read["table_rows"] += len(cells) - 1
    # A prompt shows a table of one width, and some published tables have rows of different lengths.
    tally.read["ragged_rows_padded"] += len(widths) - widths.count(widths[0])
    if min(widths) < width:
        cells = [line + ("",) * (width - len(line)) for line in cells]
    return Table(key, cells[0], tuple(cells[1:]), fold(title))


def _are_single_lines(lines: Sequence[Sequence[Any]]) -> bool:
    """Return whether it is certain that `cell_text` changes no cell of a table.

    Looking at all cells together is several times as fast as looking at each.
    """
    try:
        text = f"|{'|'.join(chain.from_iterable(lines))}|"
    except TypeError:  # a number, or nothing
        return False
    # As in `fold`, and no cell begins or ends with a blank.
    return text.isprintable() and not any(blank in text for blank in ("  ", "| ", " |"))


def cell_text(value: Any, where: str) -> str:
    """Return a cell as one line.

    Raises:
        InputError: the value is a list or an object.
    """
    text = "" if is_empty(value) else printed_id(value)
    if text is None:
        raise InputError(f"{where}: a cell of the table is no text ({type(value).__name__}); make it one")
    return fold(text)


def rows_of(value: Any, header: Any, where: str) -> list[list[Any]]:
    """Return the rows of a table, its header first.

    Args:
        value: the cells in any of the forms that this module knows.
        header: names of the columns as a list or a text; None takes them from the cells.
        where: file and row, for errors.

    Raises:
        InputError: the value is in none of the forms.
    """
    names = None if is_empty(header) else _header(header, where)
    if isinstance(value, str):
        value = _parsed(value, where)
    if isinstance(value, Mapping):
        inner = next((value[name] for name in _ROWS if isinstance(value.get(name), list)), None)
        if inner is None:
            return _by_column(value, names, where)
        own = next((value[name] for name in _HEADERS if isinstance(value.get(name), list)), None)
        names, value = (names if names is not None else own), inner
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: the table has no rows ({type(value).__name__}); {_FORMS}")
    if all(isinstance(row, Mapping) for row in value):
        # In the order of their first occurrence; later rows may have further fields.
        fields = list(dict.fromkeys(name for row in value for name in row))
        return [names or fields, *([row.get(name) for name in fields] for row in value)]
    if not all(isinstance(row, (list, tuple)) for row in value):
        raise InputError(f"{where}: the rows of the table are neither lists nor objects; {_FORMS}")
    return [*([names] if names else []), *(list(row) for row in value)]


def _by_column(value: Mapping[str, Any], names: list[Any] | None, where: str) -> list[list[Any]]:
    """Return the rows of an object with the cells of each column in a list."""
    columns = list(value.values())
    if not columns or not all(isinstance(cells, list) for cells in columns):
        raise InputError(f"{where}: the object has the fields {', '.join(value)[:80]} and no rows; {_FORMS}")
    if len({len(cells) for cells in columns}) > 1:
        raise InputError(f"{where}: the columns of the table have different lengths; give each row a cell")
    return [names or list(value), *(list(row) for row in zip(*columns, strict=True))]


def _header(value: Any, where: str) -> list[Any]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            value = _json(text, where)
        else:
            value = next(csv.reader([text], delimiter=_separator(text)))
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(
            f"{where}: the header of the table is {type(value).__name__}; expected a list of names"
        )
    return list(value)


def _separator(line: str) -> str:
    return max(SEPARATORS, key=line.count)


def _parsed(text: str, where: str) -> Any:
    """Return the rows of a table that is a text."""
    text = text.strip()
    if text.startswith(("[", "{")):
        return _json(text, where)
    lines = text.splitlines()
    if len(lines) > 1 and _RULE.match(lines[1].strip()) and "-" in lines[1] and "|" in lines[0]:
        return [_bars(line) for number, line in enumerate(lines) if number != 1 and line.strip()]
    if len(lines) < 2:
        raise InputError(f"{where}: the table is the text {text[:40]!r}; {_FORMS}")
    return parse_csv(text, where)[0]


def _bars(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    inner = line.strip().removeprefix("|")
    inner = inner[:-1] if inner.endswith("|") and not inner.endswith("\\|") else inner
    return [cell.strip().replace("\\|", "|") for cell in _BAR.split(inner)]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: the table begins like JSON, but is none ({error!s:.80}); write it with json.dumps"
        ) from error


def table_in_file(path: Path, key: str, sheet: str | None, tally: Tally) -> Table | None:
    """Read a file that is one table, or return None if it has no rows below its header.

    Args:
        path: CSV, TSV, XLSX, Parquet, Arrow or JSON.
        key: the table's id.
        sheet: name of the sheet of an `.xlsx` file; None takes the first.
        tally: counts tables and rows, and what is dropped.

    Raises:
        InputError: the file is broken.
    """
    if not unpacked_name(path).endswith(_OTHERS):
        rows, separator = read_csv(path)
        if separator != ",":
            tally.read[f"tables_separated_by_{SEPARATORS.get(separator, 'another_sign')}"] += 1
        return table_of(key, rows, "", str(path), tally)
    found = [row for _, _, row in any_rows(path, Contents("a row of the table", sheet=sheet))]
    lines = rows_of(found, None, str(path)) if found else []
    return table_of(key, lines, "", str(path), tally)
