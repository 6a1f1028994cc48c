"""SHA-256 of files, texts and JSON values, as hexadecimal text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HASH_THREADS = 4  # hashing releases the interpreter's lock


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
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return list(pool.map(file_digest, paths))
