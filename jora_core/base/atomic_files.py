"""Atomic writes: each file is written under a temporary name, forced to disk, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jora_core.base.errors import write_error


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename the file to `path` when the block succeeds.

    When the block fails, the temporary file is removed.

    Raises:
        InputError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        publish(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # there may be none
            temporary.unlink()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `folder`, and rename it to `folder` when the block succeeds.

    If another process has made `folder` in the meantime, its folder stays, so all must write the same. The
    files are not forced to disk: this is for caches.

    Raises:
        OSError: the folder cannot be made. The caller knows its purpose and reports the error.
    """
    # Not named by the process id, because threads of one process may make the same folder.
    temporary = folder.with_name(f".{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a small file atomically.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON with sorted keys, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    # NaN and Infinity are not valid JSON, although Python would write them, and other readers refuse them.
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def temporary_name(path: Path) -> Path:
    """Return the temporary name under which this process writes a file."""
    # In the folder of the file itself: a rename is atomic only within one file system. The process id keeps
    # two processes that write the same file apart.
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def publish(temporary: Path, path: Path) -> None:
    """Force a finished temporary file to disk and rename it to its final name."""
    # Content first, name second: after a power failure the name must not lead to a file whose content never
    # reached the disk.
    fsync(temporary)
    temporary.replace(path)


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files of killed processes below a folder. No other process may be writing there."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's names, to disk."""
    # `os.open`, because `open` takes no folder. The names in a folder reach the disk only with its own fsync.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Force a folder with all files and folders below it to disk, the files first."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync(Path(parent) / name)
        fsync(Path(parent))
