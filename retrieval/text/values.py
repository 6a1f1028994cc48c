"""Texts of single values: numbers, days and truth values as the file prints them."""

from __future__ import annotations

import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

#: Larger integers are no ids, and Python does not print those of more than 4,300 digits.
_LARGEST = 10**40


def printed(value: Any) -> str | None:
    """Return a text, or a number, truth value, day or time as it is printed; None for any other value.

    A number that is not finite stands for a missing value, so it has no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < _LARGEST else None
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else None
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return value.isoformat() if isinstance(value, (date, time)) else None


def printed_id(value: Any) -> str | None:
    """Return an id as text, or None. The ids `7` and `7.0` are the same."""
    # Data frames turn a column of integers with a gap into fractions.
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        return printed(int(value))
    return printed(value)


def is_empty(value: Any) -> bool:
    """Return whether a value is null, not a number, or a text without anything but white space.

    A text such as `none` is not empty, because it may be an answer. For fields where it stands for a missing
    value, there is :func:`retrieval.readers.files.fields.is_missing`.
    """
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and math.isnan(value))
