"""What every ``python -m jora_core.<command> --spec FILE`` shares: reading the spec and exit codes.

Exit codes: 0 done, 1 failed (traceback), 2 bad input (one ``error: …`` line), or what the command itself
returns, such as 143 after an orderly stop.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel

from jora_core.base.errors import InputError
from jora_core.parallel.devices import set_compilation_cache
from jora_core.specs.read_spec import read_spec

Spec = TypeVar("Spec", bound=BaseModel)

# What the user can mend: a folder that is not writable, a full disk. The rest is a failure of ours.
_USER_ERRNO = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
}


def run_command(
    model: type[Spec], function: Callable[[Spec], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Run one command and end the process with its exit code.

    Args:
        model: the spec's class; its `output_dir` and `compilation_cache_dir` are honoured where it has them.
        function: does the work; an int that it returns is the exit code, None is 0.
        argv: arguments without the program's name; the process's own if None.
    """
    summary = (sys.modules[function.__module__].__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--spec", required=True, type=Path, help=f"JSON file with a {model.__name__}")
    path = parser.parse_args(argv).spec
    try:
        spec = read_spec(path, model)
        if output_dir := getattr(spec, "output_dir", None):
            check_writable(output_dir)
        set_compilation_cache(getattr(spec, "compilation_cache_dir", None))
        code = function(spec)
    except InputError as err:
        _refuse(str(err))
    except OSError as err:
        if err.errno not in _USER_ERRNO:
            raise
        _refuse(f"{err.filename or 'output'}: {err.strerror}; free space or choose another folder")
    sys.exit(code or 0)


def check_writable(folder: Path) -> None:
    """Make an output folder and see that a file can be written there, before any work is spent.

    Raises:
        InputError: no permission, a file in the way, or a full disk.
    """
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as err:
        raise InputError(f"cannot write to output folder {folder}: {err.strerror or err}") from None


def _refuse(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(2)
