"""SHA-256 of files, texts and JSON values, as hexadecimal text; cache files with a digest beside them.

The digest of the cache file `NAME` is in `NAME.sha256`. So a damaged file is never read, and its owner
writes it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jora_core.base.atomic_files import atomic_path, write_bytes

HASH_THREADS = 4  # hashing releases the interpreter's lock

logger = logging.getLogger("jora.cache")


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    # Keys of artifacts are digests of this text. With another format, all artifacts would be computed again.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`."""
    return text_digest(canonical_json(value))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        OSError: the file cannot be read. The caller knows the file's purpose and reports the error.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file, computed for several files at a time.

    Raises:
        OSError: a file cannot be read.
    """
    if len(paths) < 2:
        return [file_digest(path) for path in paths]

    def digest_from(first: int) -> list[str]:
        return [file_digest(path) for path in paths[first::HASH_THREADS]]

    # One task for each thread, because a task takes longer than the digest of a source file.
    digests = [""] * len(paths)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        for first, found in enumerate(pool.map(digest_from, range(HASH_THREADS))):
            digests[first::HASH_THREADS] = found
    return digests


@contextmanager
def sealed_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. When the block succeeds, publish the file and its digest.

    Raises:
        InputError: the folder cannot be made or written to, or the disk is full.
    """
    with atomic_path(path) as temporary:
        yield temporary
        digest = file_digest(temporary)
    # Last: until then the file counts as damaged, also for a process that reads it at this moment.
    write_bytes(_digest_file(path), f"{digest}\n".encode())


def whole(path: Path) -> bool:
    """Return whether a cache file has the content that `sealed_path` has written.

    A damaged file is logged as a warning: the work of the cache is done again, and the disk may be failing.
    """
    try:
        if file_digest(path) == _digest_file(path).read_text(encoding="ascii").strip():
            return True
    # A digest that is no text is a ValueError.
    except (OSError, ValueError):
        pass
    # Not removed: another process may be writing its digest. The owner replaces it.
    if path.exists():
        logger.warning("%s: damaged, or without its digest, so it is written again", path)
    return False


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
