"""The supervisor of one child process, so that the child cannot outlive the pipeline.

``python -m flows.children.supervisor --lifeline FD -- COMMAND…`` runs COMMAND in the supervisor's own
process group and exits with the exit status of COMMAND (``128 + n`` after signal *n*). In two cases a child
could stay on the accelerator without a parent:

- The pipeline is killed with -9. Linux's parent-death signal would come at the end of the *thread* that
  forked, and Prefect runs tasks in worker threads. So the supervisor reads a pipe instead, whose end of file
  means that the pipeline has ended. It then kills the whole process group, with all helpers of the child.
- The supervisor is killed with -9. The supervisor has only one thread, so here the parent-death signal is
  reliable.

This module imports the standard library only, because it must start in milliseconds and take little memory
beside a training run.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 1.0


def die_with_parent(parent: int) -> Callable[[], None]:
    """Return a function with which a forked child ends with process ``parent`` (on Linux, else no effect)."""
    # Loaded before the fork: between fork and exec the child must not import or load anything.
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def tie() -> None:
        if libc is None:
            return
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # If the parent has ended between fork and prctl, no signal would ever come.
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    return tie


def supervise(command: list[str], lifeline: int, parent: int) -> int:
    """Run a command until the command or the pipeline ends.

    Args:
        command: program and arguments.
        lifeline: read end of a pipe whose write end the pipeline has open. Its end of file means that the
            pipeline has ended.
        parent: process id of the pipeline.

    Returns:
        The command's exit status, 128 + n after signal n.
    """
    os.set_inheritable(lifeline, False)
    wake_read, wake_write = os.pipe()
    # Python requires it: a signal handler must never block on a full pipe.
    os.set_blocking(wake_write, False)
    # Signals arrive as bytes in a pipe, so that `select` waits for them and for the lifeline together.
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    # A handler, not SIG_IGN: ignored signals stay ignored across exec, but the child must receive the SIGTERM
    # that is passed on, to write a checkpoint. The child ends its own helpers. Finally the group is killed.
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(name, lambda *_: None)

    child = subprocess.Popen(command, preexec_fn=die_with_parent(os.getpid()))
    while True:
        # The timeout is for the check of the parent below; everything else wakes `select` at once.
        readable, _, _ = select.select([lifeline, wake_read], [], [], POLL_SECONDS)
        if wake_read in readable and signal.SIGTERM in os.read(wake_read, 4096):
            child.send_signal(signal.SIGTERM)
        status = child.poll()
        if status is not None:
            return status if status >= 0 else 128 - status
        # Another fork of the pipeline may have inherited the write end, so a changed parent counts as well.
        if lifeline in readable or os.getppid() != parent:
            # SIGKILL, not SIGTERM: no process is left to wait for a checkpoint. It ends this process, too.
            os.killpg(os.getpgrp(), signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    """Parse ``--lifeline FD --parent PID -- COMMAND…`` and supervise the command."""
    parser = argparse.ArgumentParser(prog="flows.children.supervisor", description=__doc__)
    parser.add_argument("--lifeline", type=int, required=True, help="read end of the pipeline's pipe")
    parser.add_argument("--parent", type=int, required=True, help="process id of the pipeline")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    return supervise(options.command, options.lifeline, options.parent)


if __name__ == "__main__":
    sys.exit(main())
