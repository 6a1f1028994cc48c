"""Supervisor between the pipeline and one training process, so that neither outlives the other.

``python -m flows.children.supervisor --lifeline FD -- COMMAND…`` runs COMMAND in the supervisor's own
process group and leaves with its exit status (``128 + n`` after signal *n*). Two ways of dying must not
leave an orphan on the accelerator:

- The pipeline is killed with -9. Linux's parent-death signal would fire when the *thread* that forked ends,
  and Prefect runs tasks in worker threads; so the supervisor holds the read end of a pipe instead, whose
  end of file says that the pipeline is gone, and kills the whole process group, helpers of the child
  included.
- The supervisor is killed with -9. The child was forked from its only thread, so there the parent-death
  signal is exact.

It imports the standard library only: it must start in milliseconds and hold no memory beside a training run.
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
    """Return what a forked child calls to be killed with process ``parent`` (Linux; elsewhere a no-op)."""
    # Loaded before the fork: between fork and exec the child must not import or load anything.
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def tie() -> None:
        if libc is None:
            return
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died between fork and prctl: then no signal would ever come.
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    return tie


def supervise(command: list[str], lifeline: int, parent: int) -> int:
    """Run a command until it ends or the pipeline does.

    Args:
        command: program and arguments.
        lifeline: read end of a pipe whose write end the pipeline holds: its end of file means that the
            pipeline is gone.
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
    # A handler, not SIG_IGN: ignored signals stay ignored across exec, and the child must see SIGTERM, which
    # is passed on, to checkpoint. What the child started is its own to end; at the last, the group is killed.
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
        # Another fork of the pipeline may have inherited the write end: a changed parent says the same.
        if lifeline in readable or os.getppid() != parent:
            # SIGKILL, not SIGTERM: nobody is left to wait for a checkpoint. It ends this process, too.
            os.killpg(os.getpgrp(), signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    """Parse ``--lifeline FD --parent PID -- COMMAND…`` and supervise it."""
    parser = argparse.ArgumentParser(prog="flows.children.supervisor", description=__doc__)
    parser.add_argument("--lifeline", type=int, required=True, help="read end of the pipeline's pipe")
    parser.add_argument("--parent", type=int, required=True, help="process id of the pipeline")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    return supervise(options.command, options.lifeline, options.parent)


if __name__ == "__main__":
    sys.exit(main())
