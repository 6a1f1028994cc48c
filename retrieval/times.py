"""Points in time as the readers take them: seconds since 1970, or ISO 8601 text."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from retrieval.errors import InputError


def parse_time(value: Any, field: str, where: str) -> float | None:
    """Seconds since 1970 of a number or of ISO 8601 text (UTC where it names no zone); None stays None.

    Raises:
        InputError: neither a finite number nor such text.
    """
    if value is None or value == "":
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, datetime):
        return _seconds(value)
    if isinstance(value, str):
        try:
            return _seconds(datetime.fromisoformat(value.strip()))
        except (ValueError, OverflowError):
            pass
    raise InputError(
        f"{where}: field {field} is {value!r:.60}; expected seconds since 1970 or a date such as "
        "2024-05-01T12:30:00Z"
    )


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
