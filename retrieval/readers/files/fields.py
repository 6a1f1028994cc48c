"""Read single fields of rows: ids, references to other rows, and texts, however they are spelled."""

from __future__ import annotations

from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from retrieval.readers.files.rows import text_of
from retrieval.text.message_text import visible_line
from retrieval.text.normalize import fold
from retrieval.text.times import parse_time
from retrieval.text.values import is_empty

# What programs write for a missing value: str(None), JSON's null, pandas' NaN and NA, SQL's \N.
_MISSING = frozenset({"", "none", "null", "nan", "<na>", "nat", "nil", "undefined", "\\n"})
_LONGEST_MISSING = 16
#: Larger times, beyond the year 5000, are not in seconds.
_MILLISECONDS = 1e11


def is_missing(value: Any) -> bool:
    """Return whether an id, a reference or a time is empty, false, or a word that stands for "no value"."""
    if isinstance(value, str):
        # Longer texts need no copy in small letters.
        return value.strip().lower() in _MISSING if len(value) < _LONGEST_MISSING else value.isspace()
    return value is False or is_empty(value)


def id_of(value: Any, field: str, where: str) -> str:
    """Return the value of an id, as text with single spaces.

    Args:
        value: the value in the file.
        field: the field's name, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value is empty or no text.
    """
    return fold(text_of(value, field, where))


def reference_of(value: Any, field: str, where: str) -> str:
    """Return the id that a reference names, or "" if the value is missing.

    Args:
        value: the value in the file.
        field: the field's name, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value is neither missing nor an id.
    """
    return "" if is_missing(value) else id_of(value, field, where)


def content_of(value: Any, field: str, where: str) -> str:
    """Return the value of a text that may be missing, not folded. A number is its digits.

    What a screen does not show, such as colours, is removed.

    Args:
        value: the value in the file.
        field: the field's name, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value is a list, an object or another thing that is no text.
    """
    # Not `is_missing`: a person may write `none`.
    if is_empty(value):
        return ""
    return visible_line(value) if isinstance(value, str) else id_of(value, field, where)


def moment_of(value: Any, field: str, where: str) -> float | None:
    """Return seconds since 1970 of a time that is a number, its digits or a date, or None if it is missing.

    Numbers beyond the year 5000 are milliseconds or microseconds.

    Args:
        value: the value in the file.
        field: the field's name, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value is no time.
    """
    # Seconds, as in most files. The type is compared because truth values are integers too.
    if type(value) in (int, float) and -_MILLISECONDS < value < _MILLISECONDS:
        return float(value)
    if is_missing(value):
        return None
    # Of a date such as 2024-05-01, it is known that it is no number.
    if isinstance(value, str) and not (value[4:5] == "-" and value[:4].isdecimal()):
        try:
            # Four digits are a year.
            value = float(value) if len(value.strip()) != 4 else value
        except ValueError:
            value = _english_date(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and _MILLISECONDS < abs(value) < 1e17:
        value = value / (1e3 if abs(value) < 1e14 else 1e6)
    return parse_time(value, field, where)


def _english_date(text: str) -> str | datetime:
    """Return the date of a text such as `Wed, 1 May 2024 00:00:00 +0000`, or the text itself."""
    # ISO 8601 is not of this form, and most dates are.
    if text[:4].isdecimal():
        return text
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        return text
