"""Runs whose process is gone: which ones count as lost."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from flows.orchestration.serving.lost_runs import is_lost, this_process

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
