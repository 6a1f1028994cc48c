"""A process notices that another one is gone while it waits outside of any collective."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

# Joins, says so, and then does what is written to it.
PROGRAM = """
import sys
from jora_core.base.errors import InputError
from jora_core.parallel import peer_watch
from jora_core.parallel.processes import ending_with_peers, join_processes
from jora_core.specs.common import DistributedSpec

peer_watch.GRACE = 2
with ending_with_peers():
    number, address = int(sys.argv[1]), sys.argv[2]
    join_processes(DistributedSpec(coordinator_address=address, num_processes=3, process_id=number))
    print("joined", flush=True)
    if sys.stdin.readline() == "fail\\n":
        raise InputError("no space left")
"""


@pytest.fixture()
def joined():
    """Three processes that have joined and wait for a line."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(number), address],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            **pipes,
        )
        for number in range(3)
    ]
    try:
        for process in started:
            line = process.stdout.readline()
            # Gloo prints to standard output too.
            while line and "joined" not in line:
                line = process.stdout.readline()
            assert line, process.communicate()[1]
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def assert_lost(process: subprocess.Popen[str], number: int) -> None:
    said = process.communicate(timeout=50)[1]
    (line,) = (text for text in said.splitlines() if text.startswith("error:"))
    assert f"process {number} of 3 lost another one" in line and "connection was closed" in line
    assert process.returncode == 1 and "Traceback" not in said


def test_a_killed_process_ends_the_others(joined):
    joined[2].kill()
    assert_lost(joined[0], 0)
    # By the end of the first one. That one is also JAX's coordinator, whose client may be faster and aborts.
    if joined[1].wait(50) != -signal.SIGABRT:
        assert_lost(joined[1], 1)


def test_a_process_that_fails_alone_ends_the_others(joined):
    joined[1].stdin.write("fail\n")
    joined[1].stdin.flush()
    assert_lost(joined[0], 0)
    assert "InputError: no space left" in joined[1].communicate(timeout=50)[1]


def test_an_ordinary_end_says_nothing(joined):
    for process in joined:
        process.stdin.write("end\n")
        process.stdin.flush()
    for process in joined:
        said = process.communicate(timeout=50)[1]
        assert process.returncode == 0 and "error" not in said, said
