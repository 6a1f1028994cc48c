"""The cache of compiled programs, with a digest at the end of each entry.

JAX itself may load a damaged program, or compile around it at every start: it never replaces a file that
exists. Here a damaged entry is removed, so its program is compiled and written once more.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from jora_core.base.atomic_files import write_bytes
from jora_core.base.errors import InputError

# Marks an entry with a digest; the digest follows it, at the end of the file.
_MARK = b"jora-sha256:"
_DIGEST_BYTES = 32

logger = logging.getLogger("jora.cache")


def set_program_cache(folder: Path | None) -> None:
    """Store compiled programs for later runs in `folder`, or in ``JAX_COMPILATION_CACHE_DIR`` if None.

    Entries get digests in a given folder only. The other one may be shared with programs that are not ours.
    """
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        _use_sealed_entries()
    # JAX keeps only slow and large programs by default. A small model has many programs that compile fast,
    # and together they are most of its start-up time.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def sealed(value: bytes) -> bytes:
    """Return the content of an entry's file: the value, a mark, and the SHA-256 of the value."""
    return value + _MARK + hashlib.sha256(value).digest()


def unsealed(data: bytes) -> bytes | None:
    """Return the value in an entry's file, or None if the file is damaged."""
    value, end = data[: -len(_MARK) - _DIGEST_BYTES], data[-len(_MARK) - _DIGEST_BYTES :]
    return value if end == _MARK + hashlib.sha256(value).digest() else None


def _use_sealed_entries() -> None:
    """Let JAX make caches with digests."""
    # JAX has no public way to give it a cache. Where this place is gone in another version, JAX's own cache
    # stays: slower after damage, but otherwise the same.
    try:
        from jax._src import compilation_cache, lru_cache
        from jax._src.compilation_cache_interface import CacheInterface
    except ImportError:
        return
    if not hasattr(compilation_cache, "get_file_cache"):
        return

    class SealedCache(CacheInterface):
        def __init__(self, folder: str) -> None:
            self._path = Path(folder)
            self._warned = False
            self._path.mkdir(parents=True, exist_ok=True)

        def get(self, key: str) -> bytes | None:
            path = self._file(key)
            try:
                data = path.read_bytes()
            except OSError:
                return None
            value = unsealed(data)
            if value is None:
                # Once a process: a folder of an earlier version has many entries without a digest.
                (logger.debug if self._warned else logger.warning)(
                    "%s: damaged, or without a digest, so its program is compiled again", path
                )
                self._warned = True
                with suppress(OSError):
                    path.unlink()
            return value

        def put(self, key: str, value: bytes) -> None:
            # A cache that cannot be written must not end the training.
            with suppress(InputError):
                if not self._file(key).exists():
                    write_bytes(self._file(key), sealed(value))

        def _file(self, key: str) -> Path:
            return self._path / f"{key}{lru_cache._CACHE_SUFFIX}"

    def get_file_cache(path: str) -> tuple[Any, str]:
        return SealedCache(path), path

    compilation_cache.get_file_cache = get_file_cache
