"""Apply the rule of :mod:`flows.orchestration.serving.catch_up` to the runs of a Prefect server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.orchestration.serving.catch_up import NAME, due_run, message, superseded

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

MOST_RUNS = 200  # a page of Prefect's API
# Not `AwaitingRetry`: such a run has begun, and its checkpoints are worth more than a newer date.
WAITING = ("Scheduled", "Late")


def waiting_runs(client: SyncPrefectClient, deployments: Iterable[UUID], now: datetime) -> list[Any]:
    """Return the due runs of schedules that have not started.

    Args:
        client: client of the server.
        deployments: ids of the deployments to look at.
        now: the time at which runs are due.
    """
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateName,
    )
    from prefect.client.schemas.sorting import FlowRunSort

    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=list(deployments))),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=list(WAITING))),
            expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": now}),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=MOST_RUNS,
    )


def skip_superseded(
    client: SyncPrefectClient, deployments: Iterable[UUID], say: Callable[[str], None]
) -> int:
    """End the due runs that newer due runs replace; return their number.

    Args:
        client: client of the server.
        deployments: ids of the deployments to look at.
        say: called with one line if runs were ended.
    """
    from prefect.states import Cancelled

    now = datetime.now(UTC)
    runs = waiting_runs(client, deployments, now)
    replaced = superseded([run for run in map(due_run, runs) if run is not None], now)
    for run_id, newer in replaced.items():
        client.set_flow_run_state(run_id, Cancelled(name=NAME, message=message(newer)), force=True)
    if replaced:
        say(f"{len(replaced)} missed runs of the schedule are skipped; the newest one runs in their place")
    return len(replaced)


def newer_due_run(flow_run: Any) -> datetime | None:
    """Return the time of a newer due run that replaces a run of a schedule, which has just begun.

    Only a run that was due when a worker took this one replaces it. On a busy machine a process takes longer
    to start than the interval of a schedule such as `* * * * *`: each run would find a newer one, and none
    would ever do the work.
    """
    own = due_run(flow_run)
    if own is None or flow_run.run_count > 1:
        return None
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        taken = taken_at(client.read_flow_run_states(flow_run.id))
        others = waiting_runs(client, [flow_run.deployment_id], taken)
    runs = [own, *(run for run in map(due_run, others) if run is not None and run.id != own.id)]
    return superseded(runs, taken).get(own.id)


def taken_at(states: Iterable[Any]) -> datetime:
    """Return when a worker took a run for the last time; now, if none has.

    Args:
        states: the states of the run so far.
    """
    pending = [state.timestamp for state in states if state.type.value == "PENDING" and state.timestamp]
    return max(pending, default=datetime.now(UTC))
