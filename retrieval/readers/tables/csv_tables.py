"""Parse CSV tables of any dialect: separated by comma, semicolon, tab or pipe, with either rule of quotes.

By RFC 4180 a quote within a cell is doubled, and a backslash is an ordinary character. WikiTableQuestions
writes `\\"` and `\\\\` instead. A file is read by RFC 4180 if that fits all of it, else by the other rule.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.unpacking import read_whole
from retrieval.readers.files.csv_dialect import SEPARATORS, find_separator, named_separator

#: Characters of one cell. The library's own limit is 131,072.
_LARGEST_CELL = 1 << 28
_ESCAPED = re.compile(r'\\([\\"])')


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
    # The library's limit is a global of its process; every table is read through this function.
    csv.field_size_limit(_LARGEST_CELL)
    first = text.partition("\n")[0]
    separator = named_separator(first)
    if separator is not None:
        text = text[len(first) + 1 :]
    elif _only_commas(text):
        separator = ","
    else:
        # A file of the first Macintosh ends its lines by `\r` alone.
        separator = find_separator(line.rstrip("\n") for line in io.StringIO(text, newline=None))
    return _rows(where, text, separator), separator


def _only_commas(text: str) -> bool:
    """Return whether nothing but commas can separate a table, as in most: its first row tells."""
    if any(sign in text for sign in SEPARATORS if sign != ","):
        return False
    try:
        header = next((row for row in _reader(text, ",", strict=False) if any(map(str.strip, row))), [])
        return len(header) > 1
    except csv.Error:
        return False


def _rows(where: str, text: str, separator: str) -> list[list[str]]:
    try:
        return _parsed(text, separator, strict=True)
    except csv.Error:
        pass
    try:
        # The escapes of WikiTableQuestions, written as RFC 4180 has them.
        plain = _ESCAPED.sub(lambda match: '""' if match[1] == '"' else "\\", text)
        return _parsed(plain, separator, strict=True)
    except csv.Error as error:
        # A quote that is never closed makes one cell of the rest of the file: rows would be lost in silence.
        if "unexpected end" in str(error):
            raise InputError(
                f"{where}: a quotation mark opens a cell and none closes it; double the quotation marks "
                "within cells"
            ) from error
    try:
        return _parsed(text, separator, strict=False)
    except csv.Error as error:
        raise InputError(f"{where}: not a readable CSV table ({error}); mend its quotes") from error


def _parsed(text: str, separator: str, strict: bool) -> list[list[str]]:
    return [row for row in _reader(text, separator, strict) if row]


def _reader(text: str, separator: str, strict: bool) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)
