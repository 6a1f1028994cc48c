"""Runs whose process is gone: which ones count as lost."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from flows.orchestration.serving.lost_runs import (
    AUTOMATION,
    is_lost,
    resume_lost_runs,
    this_process,
    was_marked,
    watch_for_lost_runs,
)

pytest_plugins = ["tests.flows.prefect_session"]

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)


def test_a_dead_process_is_lost_and_a_living_one_is_not() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    name = f"{socket.gethostname()}:{process.pid}"
    # Until its parent asks for the status, the killed process is a zombie.
    while not is_lost(name, LONG_AGO, NOW, just_died=False):
        assert process.returncode is None
    process.wait()
    assert is_lost(name, LONG_AGO, NOW, just_died=False)
    assert not is_lost(this_process(), LONG_AGO, NOW, just_died=True)


def test_other_machines_are_left_alone() -> None:
    assert not is_lost("another-host:1", LONG_AGO, NOW, just_died=True)
    assert not is_lost("a pod of Kubernetes", LONG_AGO, NOW, just_died=True)


def test_a_run_that_has_not_noted_its_process() -> None:
    assert is_lost(None, NOW, NOW, just_died=True)
    assert is_lost("", LONG_AGO, NOW, just_died=False)
    assert not is_lost(None, NOW - timedelta(seconds=20), NOW, just_died=False)


@pytest.mark.timeout(900)
def test_a_run_that_the_automation_has_marked_goes_on(prefect_url: str) -> None:
    """After a stop of some minutes the server marks the run before the next worker looks for it."""
    from prefect import flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Crashed, Running

    @flow(name="of-a-lost-run")
    def nothing() -> None:
        pass

    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    with SyncPrefectClient(prefect_url) as client:
        watch_for_lost_runs(client, 30)
        (automation,) = client.read_automations_by_name(AUTOMATION)
        action: Any = automation.actions[0]
        message = action.message
        deployment = client.create_deployment(client.create_flow(nothing), "of-a-lost-run")

        def crashed(pid: str, message: str) -> UUID:
            run = client.create_flow_run_from_deployment(deployment)
            client.set_flow_run_state(run.id, Running(), force=True)
            client.update_flow_run(run.id, infrastructure_pid=pid)
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)
            return run.id

        here = socket.gethostname()
        marked = crashed(f"{here}:{dead.pid}", message)
        others = [
            crashed(f"{here}:{dead.pid}", "the disk is gone"),
            crashed(this_process(), message),
            crashed("another-host:1", message),
        ]
        said: list[str] = []
        assert resume_lost_runs(client, [deployment], said.append) == 1 and len(said) == 1
        assert client.read_flow_run(marked).state.name == "AwaitingRetry"
        assert {client.read_flow_run(run).state.name for run in others} == {"Crashed"}
        state = client.read_flow_run(others[-1]).state
        assert was_marked(state, state.timestamp) and not was_marked(
            state, state.timestamp + timedelta(days=2)
        )
