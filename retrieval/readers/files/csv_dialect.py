"""The separator of a CSV table: named on its first line, or found from its first rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence

#: Separators in the order of preference, with their names in counts and errors.
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
# Excel names the separator on a first line of its own.
_NAMED = re.compile(r"sep=(.)", re.IGNORECASE)
# What is looked at to find a separator.
_LINES = 200
_CHARACTERS = 1 << 16


def named_separator(line: str) -> str | None:
    """Return the separator that a first line names, as in `sep=;`; None for any other line."""
    named = _NAMED.fullmatch(line.rstrip("\r\n"))
    return named[1] if named else None


def find_separator(lines: Iterable[str], first: str = ",") -> str:
    """Return the separator that splits the first lines into rows of the same length.

    If several do so equally well, the one that gives more cells wins, then the one that comes first in
    `SEPARATORS`. For a table of one column, the result is a sign that splits no row.

    Args:
        lines: the lines of the table, without line ends.
        first: the separator to prefer.
    """
    sample: list[str] = []
    size = 0
    for line in lines:
        sample.append(line)
        size += len(line)
        if len(sample) == _LINES or size > _CHARACTERS:
            break
    widths = {first: _widths(sample, first)}
    share, width = _evenness(widths[first])
    # Only parsing is slow. A sign that is too rare to split any row, or the first row into more cells than an
    # even table has, cannot win: it counts as one that splits no row.
    needed = width if share == 1.0 else 1
    for sign in SEPARATORS:
        if sign != first:
            enough = sum(line.count(sign) for line in sample) >= needed
            widths[sign] = _widths(sample, sign) if enough else []
    # `max` keeps the first of equal ones.
    best = max(widths, key=lambda sign: _evenness(widths[sign]))
    if any(_evenness(widths[best])):
        return best
    # One column. A line above the header, such as a title, is no column: the rows below it tell.
    if len(widths[first]) > 2 and _evenness(widths[first][1:])[0] == 1.0:
        return first
    return next((sign for sign, found in widths.items() if set(found) <= {1}), first)


def _widths(lines: Sequence[str], separator: str) -> list[int]:
    """Return the number of cells of each row that is not blank; none if the lines cannot be split."""
    try:
        rows = csv.reader([f"{line}\n" for line in lines], delimiter=separator)
        return [len(row) for row in rows if any(map(str.strip, row))]
    except csv.Error:
        return []


def _evenness(widths: Sequence[int]) -> tuple[float, int]:
    """Return the share of rows that are as wide as the first, and the width; zeros for a single column."""
    if not widths or widths[0] < 2:
        return 0.0, 0
    return sum(width == widths[0] for width in widths) / len(widths), widths[0]
