"""SHA-256 of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HASH_THREADS = 4  # hashing releases the interpreter's lock


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, several at a time."""
    if len(paths) < 2:
        return [digest_file(path) for path in paths]
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return list(pool.map(digest_file, paths))
