"""Runs whose process has died: find them, and let them go on from their checkpoints.

A killed worker cannot tell the server that its run has ended. Two things find such a run. The next worker on
this machine looks for runs whose process is gone, and lets them run again. On other machines an automation of
the server marks a run without heartbeats as crashed. After a longer stop, such as that of a machine that was
off, the automation comes first; the next worker on this machine lets that run go on too.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

AUTOMATION = "jora-raft: runs without heartbeats"
MISSED_HEARTBEATS = 6  # of a machine that is too busy for some of them
MOST_STARTS = 3  # of one run; a run that kills its worker again and again must end
UNKNOWN_AGE = timedelta(minutes=5)
RUNNING = ("PENDING", "RUNNING", "CANCELLING")
NO_HEARTBEAT = "no heartbeat for"  # how the message of the automation begins
RESUME_AGE = timedelta(days=1)  # since the automation has marked the run; nobody waits for an older one


def note_process(flow_run: Any) -> None:
    """Note host and process of a flow run at the server, unless a worker of a work pool has done so."""
    if flow_run.infrastructure_pid:
        return
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, infrastructure_pid=this_process())


def this_process() -> str:
    """Return the name of this process on all machines: `HOST:PID`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_lost(process: str | None, since: datetime, now: datetime, just_died: bool) -> bool:
    """Whether the process of a run is gone.

    Args:
        process: `HOST:PID` of the run; None if the run had not noted it yet.
        since: time of the run's last change of state.
        now: the present time.
        just_died: whether the worker that had the run is known to be dead.
    """
    if not process:
        # A run notes its process in its first second. Another worker may be about to start it.
        return just_died or now - since > UNKNOWN_AGE
    host, _, number = process.rpartition(":")
    if host != socket.gethostname() or not number.isdigit():
        return False
    return not _alive(int(number))


def was_marked(state: Any, now: datetime) -> bool:
    """Whether our automation has marked a crashed run, a short while ago.

    Args:
        state: state of the run.
        now: the present time.
    """
    if state is None or not state.message:
        return False
    return state.message.startswith(NO_HEARTBEAT) and now - state.timestamp < RESUME_AGE


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A killed process stays a zombie until its parent reads its status.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def resume_lost_runs(
    client: SyncPrefectClient,
    deployments: Sequence[UUID],
    say: Callable[[str], None],
    just_died: bool = False,
) -> int:
    """Let the runs whose process is gone run again; return their number.

    Args:
        client: client of the server.
        deployments: ids of the deployments to look at.
        say: called with one line for each run.
        just_died: whether an earlier worker of this machine has just died.
    """
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.states import AwaitingRetry, Cancelled, Crashed

    now = datetime.now(UTC)

    def read(*types: str) -> list[Any]:
        chosen = FlowRunFilterStateType(any_=[StateType[name] for name in types])
        return client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=list(deployments))),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=chosen)),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )

    marked = [run for run in read("CRASHED") if was_marked(run.state, now) and run.infrastructure_pid]
    count = 0
    for run in (*read(*RUNNING), *marked):
        state = run.state
        if state is None or not is_lost(run.infrastructure_pid, state.timestamp, now, just_died):
            continue
        if state.type == StateType.CRASHED and run.run_count >= MOST_STARTS:
            continue
        count += 1
        if state.type == StateType.CANCELLING:
            new = Cancelled(message="its process had ended before the cancellation")
        elif run.run_count >= MOST_STARTS:
            new = Crashed(message=f"its process died {run.run_count} times; see the logs before a new start")
        else:
            new = AwaitingRetry(
                scheduled_time=now, message="its process died; this run goes on from its checkpoints"
            )
            client.update_flow_run(run.id, infrastructure_pid="")
        client.set_flow_run_state(run.id, new, force=True)
        say(f"run {run.name}: {new.message}")
    return count


def watch_for_lost_runs(client: SyncPrefectClient, heartbeat_seconds: int) -> None:
    """Create or update the automation that marks a run without heartbeats as crashed.

    Args:
        client: client of the server.
        heartbeat_seconds: seconds between two heartbeats of a run.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    ends = (
        "Completed",
        "Failed",
        "Cancelled",
        "Crashed",
        "AwaitingRetry",
        "Scheduled",
        "Paused",
        "Suspended",
    )
    within = timedelta(seconds=MISSED_HEARTBEATS * heartbeat_seconds)
    wanted = AutomationCore(
        name=AUTOMATION,
        description="The process of such a run was killed, or its machine is off.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in ends)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        # pyright takes the union of all actions as invariant.
        actions=[  # type: ignore[reportArgumentType]
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"{NO_HEARTBEAT} {within.seconds} s: its process is gone",
            )
        ],
    )
    known = client.read_automations_by_name(AUTOMATION)
    if known:
        client.update_automation(known[0].id, wanted)
    else:
        client.create_automation(wanted)
