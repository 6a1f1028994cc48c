"""Parse CSV tables of any dialect: separated by comma, semicolon, tab or pipe, with either rule of quotes.

By RFC 4180 a quote within a cell is doubled, and a backslash is an ordinary character. WikiTableQuestions
writes `\\"` and `\\\\` instead. A file is read by RFC 4180 if that fits all of it, else by the other rule.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.unpacking import read_whole

#: Separators in the order of preference, with their names in counts and errors.
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
#: Characters of one cell. The library's own limit is 131,072.
_LARGEST_CELL = 1 << 28
_ESCAPED = re.compile(r'\\([\\"])')
#: Excel writes the separator into a first line of its own.
_NAMED = re.compile(r"^sep=(.)\r?\n", re.IGNORECASE)


def read_csv(path: Path) -> tuple[list[list[str]], str]:
    """Return the rows of a CSV file, without empty lines, and its separator.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or has a quote that is never closed.
    """
    raw = read_whole(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8; save the table as UTF-8") from error
    return parse_csv(text, str(path))


def parse_csv(text: str, where: str) -> tuple[list[list[str]], str]:
    """Return the rows of a CSV text, without empty lines, and its separator.

    Args:
        text: the table.
        where: the file, or the file and the row that holds the table, for errors.

    Raises:
        InputError: the text has a quote that is never closed.
    """
    named = _NAMED.match(text)
    if named is not None:
        return _rows(where, text[named.end() :], named[1]), named[1]
    separator = find_separator(text)
    return _rows(where, text, separator), separator


def find_separator(text: str) -> str:
    """Return the separator of a table: the first one that gives each row equally many cells, at least two.

    If none does, commas separate, because a table may have one column or rows of different lengths.
    """
    for separator in SEPARATORS:
        try:
            widths = {len(row) for row in _parsed(text, separator, strict=False) if row}
        except csv.Error:
            continue
        if len(widths) == 1 and widths != {1}:
            return separator
    # Rows of different lengths: what separates the header.
    header = text.lstrip("\r\n").split("\n", 1)[0]
    counts = {separator: header.count(separator) for separator in SEPARATORS if '"' not in header}
    best = max(counts, key=counts.__getitem__, default=",")
    return best if counts.get(best) and not counts.get(",") else ","


def _rows(where: str, text: str, separator: str) -> list[list[str]]:
    try:
        return [row for row in _parsed(text, separator, strict=True) if row]
    except csv.Error:
        pass
    try:
        # The escapes of WikiTableQuestions, written as RFC 4180 has them.
        plain = _ESCAPED.sub(lambda match: '""' if match[1] == '"' else "\\", text)
        return [row for row in _parsed(plain, separator, strict=True) if row]
    except csv.Error as error:
        # A quote that is never closed makes one cell of the rest of the file: rows would be lost in silence.
        if "unexpected end" in str(error):
            raise InputError(
                f"{where}: a quotation mark opens a cell and none closes it; double the quotation marks "
                "within cells"
            ) from error
    try:
        return [row for row in _parsed(text, separator, strict=False) if row]
    except csv.Error as error:
        raise InputError(f"{where}: not a readable CSV table ({error}); mend its quotes") from error


def _parsed(text: str, separator: str, strict: bool) -> list[list[str]]:
    # The library's limit is a global of its process; every table is read through this function.
    csv.field_size_limit(_LARGEST_CELL)
    lines = io.StringIO(text, newline="")
    return list(csv.reader(lines, delimiter=separator, doublequote=True, strict=strict))
