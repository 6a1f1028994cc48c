"""Entry point of every command that runs as a child process, `python -m MODULE --spec FILE`.

The exit status is 0 for success, 1 for a failure (traceback), 2 for bad input (one ``error: …`` line), or the
command's own status, such as 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from jora_core.base.errors import InputError

Spec = TypeVar("Spec")

# Errors that the user can fix: a folder that is not writable, a full disk. Others are faults of the program.
_USER_ERRNO = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
}


def run_spec_command(
    read: Callable[[Path], Spec],
    function: Callable[[Spec], int | None],
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
) -> NoReturn:
    """Run one command and end the process with its exit status.

    Args:
        read: reads and checks the spec. If the spec has an `output_dir`, that folder is made.
        function: does the work and returns the exit status; None is 0.
        argv: arguments without the program's name; those of the process if None.
        description: one sentence for `--help`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--spec", required=True, type=Path, help="JSON file that says what to do")
    path = parser.parse_args(argv).spec
    try:
        spec = read(path)
        # Before the model is loaded: hours of work must not fail at the first file that is written.
        if output_dir := getattr(spec, "output_dir", None):
            check_writable(output_dir)
        status = function(spec)
    except InputError as err:
        _refuse(str(err))
    except OSError as err:
        # Any other error of the system is a fault of the program, and its traceback is needed.
        if err.errno not in _USER_ERRNO:
            raise
        _refuse(f"{err.filename or 'output'}: {err.strerror}; free space or choose another folder")
    sys.exit(status or 0)


def check_writable(folder: Path) -> None:
    """Make an output folder and check that a file can be written there, before any work is done.

    Raises:
        InputError: no permission, a file in the way, or a full disk.
    """
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One byte: on a full disk an empty file can still be made.
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as err:
        raise InputError(f"cannot write to output folder {folder}: {err.strerror or err}") from None


def _refuse(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(2)


def peak_process_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
