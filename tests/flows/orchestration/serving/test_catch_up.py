"""Missed schedules: one run in place of many, on Prefect's own dates and through a change of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from prefect.client.schemas.objects import State, StateType

from flows.orchestration.serving.catch_up import DueRun, message, superseded
from flows.orchestration.serving.catch_up_runs import taken_at

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


def test_a_run_that_starts_slowly_is_not_replaced_by_what_became_due_meanwhile() -> None:
    """With one run a minute, and minutes from the worker's grasp to the first line of the flow."""
    begun = datetime(2026, 6, 3, 12, tzinfo=UTC)
    made = runs([begun + timedelta(minutes=minute) for minute in range(10)])
    own = made[2]
    taken = taken_at(
        [
            State(type=StateType.SCHEDULED, timestamp=own.due),
            State(type=StateType.PENDING, timestamp=own.due + timedelta(seconds=5)),
            State(type=StateType.RUNNING, timestamp=own.due + timedelta(minutes=3)),
        ]
    )
    assert own.id not in superseded(made, taken), "it runs, although three newer ones are due by now"
    assert superseded(made, taken).keys() == {run.id for run in made[:2]}
    # Another that was due already when the worker took it is skipped as before.
    assert made[1].id in superseded(made, taken_at([State(type=StateType.PENDING, timestamp=own.due)]))
    before = datetime.now(UTC)
    assert before <= taken_at([State(type=StateType.SCHEDULED, timestamp=own.due)]) <= datetime.now(UTC)


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
