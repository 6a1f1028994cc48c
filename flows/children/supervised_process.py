"""Processes that cannot outlive the pipeline, started under :mod:`flows.children.supervisor`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Much shorter than the life of a child, and much longer than one `waitid`.
POLL_SECONDS = 0.05
HUGE_PAGES = "glibc.malloc.hugetlb=1"


@dataclass(frozen=True)
class Supervised:
    """A running command under a supervisor, in a session of its own.

    Attributes:
        process: process of the supervisor.
        lifeline: write end of the supervisor's pipe. If it is closed, as at the end of this process, the
            supervisor kills the command.
    """

    process: subprocess.Popen[bytes]
    lifeline: int

    @property
    def pid(self) -> int:
        """Id of the supervisor's process, and of its process group."""
        return self.process.pid

    def ended(self) -> bool:
        """Whether the command has ended. An ended process is not reaped, so its id stays reserved."""
        if self.process.returncode is not None:
            return True
        # WNOWAIT leaves the process a zombie. The id of a reaped process can be given to a new process, whose
        # group `killpg` would then end.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self, grace_seconds: float) -> int:
        """End the command with SIGTERM, then kill its process group with SIGKILL.

        SIGKILL follows when the command has ended, at the latest after ``grace_seconds``.

        Returns:
            The exit status of the command, 128 + n after signal n.
        """
        if self.process.returncode is None:
            if not self.ended():
                # Only to the supervisor, which forwards it to the command. Other processes of the group may
                # still write parts of the command's last checkpoint.
                os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
            while not self.ended() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            # Also after a normal end, because helpers of the command may still run.
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.lifeline)
        status = self.process.wait()
        # `Popen` gives -n after signal n; the shell's 128 + n is what the supervisor also uses.
        return status if status >= 0 else 128 - status


def start(command: list[str], env: dict[str, str], output: int, stdout: int | None = None) -> Supervised:
    """Start a command under the supervisor.

    Args:
        command: program and arguments.
        env: variables to add to our environment.
        output: file descriptor for the standard output and the standard error.
        stdout: file descriptor for the standard output, if it differs from ``output``.
    """
    lifeline_read, lifeline_write = os.pipe()
    supervisor = [sys.executable, "-P", "-m", "flows.children.supervisor", "--lifeline", str(lifeline_read)]
    try:
        process = subprocess.Popen(
            [*supervisor, "--parent", str(os.getpid()), "--", *command],
            # The caller's variables come last, so they override the others.
            env={**os.environ, **_importable(), **_huge_pages(), **env},
            stdin=subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            pass_fds=(lifeline_read,),
            # Ctrl-C in a terminal goes to its whole foreground group. In a session of its own the child
            # gets the signal from us only, with time for a checkpoint.
            start_new_session=True,
        )
    # Closed after an error only. On success the write end stays open: when this process ends, the supervisor
    # reads the end of the file and kills the command.
    except BaseException:
        os.close(lifeline_write)
        raise
    finally:
        os.close(lifeline_read)
    return Supervised(process, lifeline_write)


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command line of ``python -P -m module``.

    With ``-P``, a file in the working directory cannot replace a module.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def _importable() -> dict[str, str]:
    """Return variables that make this checkout importable in a child with any working directory."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


def _huge_pages() -> dict[str, str]:
    """Return variables that let the child's C library use memory pages of 2 MB.

    They work in glibc 2.35 and later, and other C libraries ignore them. A training step on a CPU takes some
    hundred MB of buffers from the system and frees them at its end. With pages of 4 kB, page faults took a
    tenth of the training time of a small model.
    """
    before = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in before:
        return {}
    return {"GLIBC_TUNABLES": f"{before}:{HUGE_PAGES}" if before else HUGE_PAGES}
