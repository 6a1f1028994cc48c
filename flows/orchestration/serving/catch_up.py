"""The rule for runs that wait: of all due runs that one configuration's schedule or changed data have made,
only the newest one runs.

A machine that was off, or a run that takes longer than the interval of its schedule, leaves a queue of due
runs. They would all do the same work on the same data. The worker ends the older ones before it takes a run,
and a run ends itself if a newer one has become due meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

NAME = "Skipped"


@dataclass(frozen=True)
class DueRun:
    """A run that a schedule or an automation has made.

    Attributes:
        id: id of the flow run.
        schedule: the deployment and the configuration that the run is for.
        due: time for which the run is scheduled.
    """

    id: UUID
    schedule: tuple[str, str]
    due: datetime


def superseded(runs: Iterable[DueRun], now: datetime) -> dict[UUID, datetime]:
    """Return the due runs that a newer due run of the same schedule replaces, with the time of the newer one.

    Args:
        runs: runs that have not started, of any schedule. Those that are due later than now are left out.
        now: the time at which runs are due, with its time zone.
    """
    due = [run for run in runs if run.due <= now]
    newest: dict[tuple[str, str], DueRun] = {}
    for run in due:
        known = newest.get(run.schedule)
        # The id decides between runs of one moment, so that two observers choose the same one.
        if known is None or (run.due, str(run.id)) > (known.due, str(known.id)):
            newest[run.schedule] = run
    return {run.id: newest[run.schedule].due for run in due if newest[run.schedule].id != run.id}


def due_run(flow_run: Any) -> DueRun | None:
    """Return the part of a Prefect flow run that the rule reads; None for one that a person has submitted."""
    due = flow_run.expected_start_time
    # Several events of changed data need one run, which reads the data as they are when it starts.
    by_automation = flow_run.created_by is not None and flow_run.created_by.type == "AUTOMATION"
    if not (flow_run.auto_scheduled or by_automation) or due is None or flow_run.deployment_id is None:
        return None
    configuration = str((flow_run.parameters or {}).get("configuration"))
    return DueRun(flow_run.id, (str(flow_run.deployment_id), configuration), due)


def message(newer: datetime) -> str:
    """Return the message of a skipped run, which names the newer run."""
    return f"skipped: superseded by the run of {newer:%Y-%m-%d %H:%M} UTC, which reads the same data"
