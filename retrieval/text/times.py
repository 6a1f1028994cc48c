"""Parse times: seconds since 1970, or ISO 8601 text."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from jora_core.base.errors import InputError
from retrieval.text.values import is_empty

#: The comparison with it also refuses NaN, and whole numbers too large for a float.
_LATEST = 1e15


def parse_time(value: Any, field: str, where: str) -> float | None:
    """Parse a time and return seconds since 1970, or None if the value is None or "".

    Args:
        value: a number of seconds, a `datetime`, a `date` (its midnight), or ISO 8601 text. A text without
            a time zone is UTC.
        field: name of the field, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value is none of these.
    """
    if is_empty(value):
        return None
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and abs(value) < _LATEST:
        return float(value)
    if isinstance(value, datetime):
        return _seconds(value)
    if isinstance(value, date):
        return _seconds(datetime.combine(value, time()))
    if isinstance(value, str):
        try:
            return _seconds(datetime.fromisoformat(value.strip()))
        except (ValueError, OverflowError):
            pass
    raise InputError(
        f"{where}: field {field} is {_shown(value)}; expected seconds since 1970 or a date such as "
        "2024-05-01T12:30:00Z"
    )


def _seconds(moment: datetime) -> float:
    # Not the local zone: the same corpus must give the same records everywhere.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _shown(value: Any) -> str:
    """Return a value for an error message, or only its type if it may be large, as a list is."""
    return f"{value!r:.60}" if isinstance(value, (str, float, bool)) else type(value).__name__
