"""SHA-256 of files, texts and JSON values, as hexadecimal text; cache files with a digest beside them.

The digest of the cache file `NAME` is in `NAME.sha256`. So a damaged file is never read, and its owner
writes it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jora_core.base.atomic_files import atomic_path, write_bytes

SMALL_FILE = 1 << 18  # in bytes
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
    with path.open("rb", buffering=0) as file:
        # The function of the library clears a buffer for each file, which takes longer than a source file.
        if os.fstat(file.fileno()).st_size < SMALL_FILE:
            return hashlib.sha256(file.read()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file, computed for several files at a time.

    Raises:
        OSError: a file cannot be read.
    """
    digests: dict[int, str] = {}
    large: list[int] = []
    for index, path in enumerate(paths):
        # A thread takes longer to start than a small file to read.
        if path.stat().st_size < SMALL_FILE:
            digests[index] = file_digest(path)
        else:
            large.append(index)
    if large:
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            found = pool.map(file_digest, [paths[index] for index in large])
            digests.update(zip(large, found, strict=True))
    return [digests[index] for index in range(len(paths))]


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
