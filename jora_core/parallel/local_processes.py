"""Several processes of one mesh on one machine.

``python -m jora_core.parallel.local_processes N COMMAND…`` runs COMMAND N times, with the variables that
`jora_core.parallel.processes` reads. As `JORA_TRAIN_LAUNCHER` it gives the training of a pipeline several
processes, for example one for each processor socket.

This module imports the standard library only, because it waits beside a training run.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

# Seconds that the other processes have to notice the end of one of them, and to say so.
_GRACE_SECONDS = 60
_POLL_SECONDS = 0.1


def run_processes(count: int, command: list[str]) -> int:
    """Run a command in several processes that join one mesh, until all have ended.

    SIGTERM and SIGINT go on to all of them. If one ends with an error, the others have a minute to end, too.

    Args:
        count: number of processes.
        command: program and arguments.

    Returns:
        0, or the exit status of the process that failed first (128 + n after signal n).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = {**os.environ, "JORA_COORDINATOR": address, "JORA_NUM_PROCESSES": str(count)}
    running: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    for number in range(count):
        running.append(subprocess.Popen(command, env={**common, "JORA_PROCESS_ID": str(number)}))
    failure = 0
    deadline = float("inf")
    while any(process.poll() is None for process in running):
        time.sleep(_POLL_SECONDS)
        if not failure:
            failure = _failure(running)
            deadline = time.monotonic() + _GRACE_SECONDS if failure else deadline
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
    failure = failure or _failure(running)
    return failure if failure >= 0 else 128 - failure


def _failure(processes: list[subprocess.Popen[bytes]]) -> int:
    """Return the status of a process that failed, 0 for none; first of one that a signal ended."""
    return min((process.returncode for process in processes if process.returncode), default=0)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jora_core.parallel.local_processes",
        description="Run a command in several processes of one mesh on this machine.",
    )
    parser.add_argument("count", type=int, metavar="N", help="number of processes")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="program and arguments")
    found = parser.parse_args()
    if found.count < 1 or not found.command:
        parser.error("a number of processes, at least 1, and a command were expected")
    return run_processes(found.count, found.command)


if __name__ == "__main__":
    sys.exit(main())
