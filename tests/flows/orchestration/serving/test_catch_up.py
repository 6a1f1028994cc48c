"""Missed schedules: one run in place of many, on Prefect's own dates and through a change of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from flows.orchestration.serving.catch_up import DueRun, message, superseded

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = ("deployment", "nightly.yaml")


async def dates(cron: str, start: datetime, count: int) -> list[datetime]:
    """The next dates of a schedule, as Prefect's server computes them."""
    from prefect.server.schemas.schedules import CronSchedule

    found = await CronSchedule(cron=cron, timezone="Europe/Berlin").get_dates(count, start=start)
    return [datetime.fromisoformat(date.isoformat()) for date in found]


def planned(cron: str, start: datetime, count: int) -> list[datetime]:
    import asyncio

    return asyncio.run(dates(cron, start, count))


def runs(times: list[datetime], schedule: tuple[str, str] = NIGHTLY) -> list[DueRun]:
    return [DueRun(uuid4(), schedule, time) for time in times]


def kept(made: list[DueRun], now: datetime) -> list[datetime]:
    """Times of the due runs that are not skipped."""
    replaced = superseded(made, now)
    return [run.due for run in made if run.due <= now and run.id not in replaced]


def test_a_week_off_is_one_run() -> None:
    start = datetime(2026, 6, 1, 1, tzinfo=UTC)
    nightly = planned("0 2 * * *", start, 10)
    now = start + timedelta(days=7)
    made = runs(nightly)
    assert len([time for time in nightly if time <= now]) == 7
    assert kept(made, now) == [nightly[6]]
    # Those of the future stay as they are, and the newest one names the time that it stands for.
    assert len(superseded(made, now)) == 6
    assert "2026-06-08 00:00 UTC" in message(set(superseded(made, now).values()).pop().astimezone(UTC))


def test_each_configuration_has_its_own_catch_up() -> None:
    now = datetime(2026, 6, 3, tzinfo=UTC)
    times = [now - timedelta(hours=hours) for hours in (30, 20, 10)]
    made = (
        runs(times) + runs(times, ("deployment", "weekly.yaml")) + runs(times[:1], ("other", "nightly.yaml"))
    )
    assert sorted(kept(made, now)) == sorted([times[2], times[2], times[0]])


def test_nothing_is_skipped_before_its_time() -> None:
    now = datetime(2026, 6, 3, tzinfo=UTC)
    made = runs([now + timedelta(minutes=minutes) for minutes in (1, 2, 3)])
    assert superseded(made, now) == {}
    assert superseded(made[:1], now + timedelta(hours=1)) == {}


def test_two_observers_choose_the_same_run() -> None:
    now = datetime(2026, 6, 3, tzinfo=UTC)
    twins = [DueRun(UUID(int=number), NIGHTLY, now) for number in (1, 2)]
    assert superseded(twins, now) == superseded(twins[::-1], now) == {UUID(int=1): now}


@pytest.mark.parametrize(
    "start",
    [
        # 02:30 does not exist on 29 March 2026 and exists twice on 25 October.
        datetime(2026, 3, 28, 12, tzinfo=UTC),
        datetime(2026, 10, 24, 12, tzinfo=UTC),
    ],
)
def test_the_night_of_a_clock_change_has_one_run(start: datetime) -> None:
    nightly = planned("30 2 * * *", start, 4)
    days = [time.astimezone(BERLIN).date() for time in nightly]
    assert len(set(days)) == len(days) == 4
    # A machine that was off over the change catches up once.
    now = nightly[2] + timedelta(minutes=5)
    assert kept(runs(nightly), now) == [nightly[2]]
    # Prefect runs an hourly schedule once for each hour of the local clock, never twice for the same one.
    hourly = [time.astimezone(BERLIN) for time in planned("0 * * * *", start, 24)]
    assert len({(time.date(), time.hour) for time in hourly}) == 24
