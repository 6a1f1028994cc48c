"""Cache files with a digest beside them, so that a damaged file is never read.

The digest of `NAME` is in `NAME.sha256`, and is written after the file. A file without a digest, or with
another one, counts as damaged: it is removed, and its owner writes it again.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from jora_core.base.atomic_files import write_bytes
from jora_core.base.digests import file_digest

SUFFIX = ".sha256"

logger = logging.getLogger("jora.cache")


def digest_path(path: Path) -> Path:
    """Return the path of the file that has the digest of `path`."""
    return path.with_name(path.name + SUFFIX)


def seal(path: Path) -> None:
    """Write the digest of a finished cache file beside it.

    Raises:
        InputError: the digest cannot be written.
    """
    write_bytes(digest_path(path), f"{file_digest(path)}\n".encode())


def whole(path: Path) -> bool:
    """Return whether a cache file has the content that was written; remove a damaged one.

    A removal is logged as a warning: the work of the cache is done again, and the disk may be failing.
    """
    try:
        if file_digest(path) == digest_path(path).read_text(encoding="ascii").strip():
            return True
    except (OSError, ValueError):
        if not path.exists() and not digest_path(path).exists():
            return False
    logger.warning("%s: damaged, so it is written again", path)
    remove(path)
    return False


def remove(path: Path) -> None:
    """Remove a cache file and its digest, of which either may be missing."""
    for file in (path, digest_path(path)):
        with suppress(OSError):
            file.unlink()
