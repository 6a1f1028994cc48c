"""The new model folder of a command outside the store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.engine.errors import one_line_os_errors
from jora_core.base.errors import InputError


@contextmanager
def workspace_beside(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a new folder, which the caller renames a part of it to.

    Raises:
        InputError: `target` exists and is not empty, or its parent cannot be written.
    """
    # An empty folder is allowed: `rename` replaces it.
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already; give a new folder")
    with one_line_os_errors("write to", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a rename is atomic only within one file system; hidden, because it
        # may stay after a kill.
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
