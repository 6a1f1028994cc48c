"""Points in time as the readers take them: seconds since 1970, or ISO 8601 text."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from jora_core.base.errors import InputError

_LATEST = 1e15  # also keeps whole numbers beyond a float's range, and NaN, out


def parse_time(value: Any, field: str, where: str) -> float | None:
    """Seconds since 1970 of a number or of ISO 8601 text (UTC where it names no zone); None stays None.

    Raises:
        InputError: neither a finite number nor such text.
    """
    if value is None or value == "":
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LATEST:
        return float(value)
    if isinstance(value, datetime):
        return _seconds(value)
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
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _shown(value: Any) -> str:
    """The value if it is short by nature, else its kind: a list may be nested without end."""
    return f"{value!r:.60}" if isinstance(value, (str, float, bool)) else type(value).__name__
