"""Check the schedule of a configuration before a command starts anything."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from jora_core.base.errors import InputError

FIELDS = 5
_EXPECTED = "expected five fields like '0 2 * * *' (minute, hour, day, month, day of the week)"


class Schedule(Protocol):
    """The settings of a schedule."""

    cron: str | None
    timezone: str


def check_schedule(schedule: Schedule, source: str) -> None:
    """Check that a schedule has a valid cron expression and a known time zone.

    Args:
        schedule: cron fields and time zone.
        source: name of the configuration's file or option, for errors.

    Raises:
        InputError: a field is not valid, no date matches, or the time zone is unknown.
    """
    try:
        ZoneInfo(schedule.timezone)
    # A name like `../x` is a ValueError, a folder of the time zone database an OSError.
    except (KeyError, ValueError, OSError):
        raise InputError(
            f"{source}: schedule.timezone: unknown time zone {schedule.timezone!r}; expected an IANA name "
            "like Europe/Berlin"
        ) from None
    if schedule.cron is None:
        return
    where = f"{source}: schedule.cron: {schedule.cron!r}"
    if len(schedule.cron.split()) != FIELDS:
        raise InputError(f"{where}: {_EXPECTED}")
    try:
        # The first date is searched too: `0 0 31 2 *` has five valid fields and never comes.
        next(CronSim(schedule.cron, datetime(2026, 1, 1)))
    except CronSimError as error:
        raise InputError(f"{where}: {str(error)[:1].lower()}{str(error)[1:]}; {_EXPECTED}") from None
    except StopIteration:
        raise InputError(f"{where}: no date matches these fields; {_EXPECTED}") from None
