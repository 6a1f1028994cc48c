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

# Short beside any child's life, long beside the cost of one `waitid`.
POLL_SECONDS = 0.05
HUGE_PAGES = "glibc.malloc.hugetlb=1"


@dataclass(frozen=True)
class Supervised:
    """A supervised command in a session of its own; closing ``lifeline`` (as our death does) kills it."""

    process: subprocess.Popen[bytes]
    lifeline: int

    @property
    def pid(self) -> int:
        """Process id, and process group, of the supervisor."""
        return self.process.pid

    def ended(self) -> bool:
        """Whether the command has ended; it is not reaped, so its process group's number stays ours."""
        if self.process.returncode is not None:
            return True
        # WNOWAIT leaves the process a zombie. Once reaped, its number could be given to another process,
        # and `killpg` would end that one's group.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self, grace_seconds: float) -> int:
        """End the command by SIGTERM, after ``grace_seconds`` and its end the whole group by SIGKILL.

        Returns the exit status of the command, 128 + n after signal n.
        """
        if self.process.returncode is None:
            if not self.ended():
                # To the supervisor alone, which passes it on to the command: the helpers of a training
                # must not end before its checkpoint.
                os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
            while not self.ended() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            # Also after a good end: helpers that the command left behind.
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
        env: added to our environment.
        output: file descriptor of its standard output and error.
        stdout: file descriptor of its standard output, where that is to go elsewhere.
    """
    lifeline_read, lifeline_write = os.pipe()
    supervisor = [sys.executable, "-P", "-m", "flows.children.supervisor", "--lifeline", str(lifeline_read)]
    try:
        process = subprocess.Popen(
            [*supervisor, "--parent", str(os.getpid()), "--", *command],
            # The caller's variables come last: they decide.
            env={**os.environ, **_importable(), **_huge_pages(), **env},
            stdin=subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            pass_fds=(lifeline_read,),
            # Ctrl-C in a terminal goes to its whole foreground group. In a session of its own the child
            # gets the signal from us only, with time for a checkpoint.
            start_new_session=True,
        )
    # The write end alone is closed here: on success it stays open, and its closing is the signal that we
    # are gone.
    except BaseException:
        os.close(lifeline_write)
        raise
    finally:
        os.close(lifeline_read)
    return Supervised(process, lifeline_write)


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command of ``python -m module``; ``-P`` keeps a stray file of the working directory out."""
    return [sys.executable, "-P", "-m", module, *arguments]


def _importable() -> dict[str, str]:
    """Make this checkout importable in the child whatever its working directory is."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


def _huge_pages() -> dict[str, str]:
    """Let the child's C library ask for memory pages of 2 MB (glibc 2.35 and later; others ignore it).

    A training step on a CPU takes some hundred MB of buffers from the system and gives them back at its end.
    With pages of 4 kB, page faults took a tenth of a small model's time.
    """
    before = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in before:
        return {}
    return {"GLIBC_TUNABLES": f"{before}:{HUGE_PAGES}" if before else HUGE_PAGES}
