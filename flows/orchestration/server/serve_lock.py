"""One `jora serve` at a time for a folder of Prefect, and who it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.engine.errors import one_line_os_errors
from flows.orchestration.prefect_server import served_url_file
from jora_core.base.errors import InputError


@contextmanager
def only_one() -> Iterator[None]:
    """Refuse a second `jora serve` of the same folder of Prefect, which would take over the deployments.

    Raises:
        InputError: another process serves, or the folder cannot be written to.
    """
    path = _path()
    with one_line_os_errors("write Prefect's folder (PREFECT_HOME)", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(descriptor):
            raise InputError(
                f"`jora serve` runs already (process {_written(descriptor)}); end it and name all "
                "configurations in one call, or give each call a PREFECT_HOME and a --port of its own; "
                "`jora serve --check` says what is up"
            )
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)  # frees the lock, as the kernel does at any end of the process


def serving_process() -> str | None:
    """Return the process number of a running `jora serve` of this folder of Prefect; None if none runs."""
    try:
        descriptor = os.open(_path(), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _lock(descriptor) else _written(descriptor)
    finally:
        os.close(descriptor)


def _path() -> Path:
    return served_url_file().with_suffix(".lock")


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written(descriptor: int) -> str:
    return os.pread(descriptor, 20, 0).decode() or "unknown"
