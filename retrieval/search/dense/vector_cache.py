"""A cache of text vectors on disk, so that a later build embeds new texts only.

Each model has a folder of Arrow files, which are added and never changed. Each file is written under a
temporary name and renamed, so a killed process leaves no partial file, and two processes that embed the same
texts write the same file. A row holds the digest of a text and its vector. A file is mapped into memory, and
checked against its own checksum when one of its vectors is first needed. A damaged file is removed with a
warning, and its texts are embedded again.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.base.atomic_files import atomic_path

DIGEST_BYTES = 16
#: numpy pads this type with zero bytes and ignores them when it compares. All digests have the same length,
#: so two different ones still differ.
DIGEST = np.dtype(f"S{DIGEST_BYTES}")
SUFFIX = ".arrow"

logger = logging.getLogger("jora.cache")


def text_digests(texts: Sequence[str], role: str = "") -> np.ndarray:
    """Return S16[n]: digests of texts.

    Args:
        texts: n texts.
        role: role in which the texts are embedded, if the role changes their vectors; else "".
    """
    # hashlib, not jora_core.base.digests: raw bytes, of text that may hold half of a surrogate pair.
    # A zero byte ends the role, so that no role and text together equal another role and text.
    prefix = role.encode() + b"\0"
    each = (hashlib.sha256(prefix + text.encode("utf-8", "surrogatepass")).digest() for text in texts)
    # 16 bytes: the chance that two of a billion texts share a digest is about 1e-21.
    return np.array([digest[:DIGEST_BYTES] for digest in each], dtype=DIGEST)


@dataclass
class VectorCache:
    """The cached vectors of one model in `folder`, by the digest of their text.

    `width` is the length of a vector. Files that other processes add after `open` are not read. Their texts
    are embedded again.
    """

    folder: Path
    width: int
    _parts: list[tuple[Path, np.ndarray, Any]] = field(default_factory=list)
    _checked: set[Path] = field(default_factory=set)
    _keys: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=DIGEST))
    _places: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))

    @classmethod
    def open(cls, folder: Path, width: int) -> VectorCache:
        """Open the cache in a folder, which need not exist yet; remove files that cannot be read."""
        cache = cls(folder, width)
        # Sorted, because `glob` has no order, and the first file decides where two hold the same text.
        for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
            cache._map(path)
        cache._sort()
        return cache

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Return int64[n, 2]: (file, row) of the vector of each digest, or (-1, -1) if the cache lacks the
        vector.

        The files of the result are checked. Damaged ones are removed, and count as not there.
        """
        while True:
            out = np.full((len(digests), 2), -1, dtype=np.int64)
            if len(self._keys):
                # A digest beyond the last key gives an index past the end; it is compared with the last key
                # instead.
                at = np.minimum(np.searchsorted(self._keys, digests), len(self._keys) - 1)
                known = self._keys[at] == digests
                out[known] = self._places[at[known]]
            damaged = [part for part in np.unique(out[:, 0]).tolist() if part >= 0 and not self._whole(part)]
            if not damaged:
                return out
            for part in damaged:
                _remove(self._parts[part][0])
            # Another file may hold the same texts.
            self._parts = [found for part, found in enumerate(self._parts) if part not in damaged]
            self._sort()

    def take(self, places: np.ndarray, out: np.ndarray) -> None:
        """Copy cached vectors into `out`.

        Args:
            places: int64[n, 2] as `find` returns them.
            out: float32[n, width]; rows whose place is (-1, -1) stay as they are.
        """
        # File by file, so that the rows of each are copied in one step.
        for part in np.unique(places[:, 0]):
            if part >= 0:
                mine = np.flatnonzero(places[:, 0] == part)
                out[mine] = self._vectors(int(part))[places[mine, 1]]

    def add(self, digests: np.ndarray, vectors: np.ndarray) -> None:
        """Write a file with one row for each digest.

        The file is on disk when the method returns, but `find` does not read it.

        Args:
            digests: S16[n].
            vectors: float32[n, width].

        Raises:
            InputError: the folder cannot be written.
        """
        import pyarrow as pa

        values = np.ascontiguousarray(vectors, dtype=np.float32)
        raw = digests.tobytes()
        schema = _schema(self.width).with_metadata({"crc32": str(zlib.crc32(values.data, zlib.crc32(raw)))})
        columns = [
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(DIGEST_BYTES), len(digests), [None, pa.py_buffer(raw)]
            ),
            pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), self.width),
        ]
        sink = pa.BufferOutputStream()
        # The Arrow file format, not Parquet, because it can be mapped without decoding.
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        data = sink.getvalue().to_pybytes()
        # The name follows from the content: two processes that embed the same part write the same file.
        start, length = data.rindex(values.tobytes()), values.nbytes
        rest = _short_digest(data[:start] + data[start + length :])
        name = f"{_short_digest(raw)}.{start:x}.{length:x}.{rest}{SUFFIX}"
        with atomic_path(self.folder / name) as temporary:
            temporary.write_bytes(data)

    def _map(self, path: Path) -> None:
        import pyarrow as pa

        if not _readable(path):
            return _remove(path)
        try:
            with pa.memory_map(str(path)) as source:
                batch = pa.ipc.open_file(source).read_all().combine_chunks().to_batches()[0]
        except (pa.ArrowException, OSError, IndexError):
            return _remove(path)
        if not batch.schema.equals(_schema(self.width)):
            return _remove(path)
        # Buffer 1 holds the values of a fixed-size binary column (buffer 0 is its validity mask), which is
        # read without making Python objects. It may be padded, so it is cut to the number of rows.
        keys = np.frombuffer(batch.column(0).buffers()[1], dtype=DIGEST)
        self._parts.append((path, keys[: batch.num_rows], batch))

    def _sort(self) -> None:
        if not self._parts:
            self._keys, self._places = self._keys[:0], self._places[:0]
            return
        keys = np.concatenate([keys for _, keys, _ in self._parts])
        places = [
            np.stack([np.full(len(keys), part), np.arange(len(keys))], axis=1)
            for part, (_, keys, _) in enumerate(self._parts)
        ]
        # Stable: if two files hold a digest, the vector of the first one counts.
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], np.concatenate(places)[order]

    def _vectors(self, part: int) -> np.ndarray:
        """Return float32[rows, width]: the vectors of one file, without a copy."""
        batch = self._parts[part][2]
        return batch.column(1).flatten().to_numpy(zero_copy_only=True).reshape(-1, self.width)

    def _whole(self, part: int) -> bool:
        """Return whether a file has the checksum that was written."""
        path, keys, batch = self._parts[part]
        # Once for each file and process: the checksum reads the whole file.
        if path not in self._checked:
            noted = (batch.schema.metadata or {}).get(b"crc32", b"").decode("ascii", "replace")
            if noted != str(zlib.crc32(self._vectors(part).data, zlib.crc32(keys.tobytes()))):
                return False
            self._checked.add(path)
        return True


def _readable(path: Path) -> bool:
    """Return whether the part of a file around its vectors has the digest in the file's name.

    Arrow ends the process at some damaged headers, so they are checked before it reads them. The vectors have
    a checksum, which is checked when they are needed.
    """
    name = path.name.split(".")
    if len(name) != 5:  # written by an earlier version
        return True
    try:
        start, length = int(name[1], 16), int(name[2], 16)
        with path.open("rb") as file:
            before = file.read(start)
            file.seek(start + length)
            return _short_digest(before + file.read()) == name[3]
    except (OSError, ValueError):
        return False


def _short_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _schema(width: int) -> Any:
    import pyarrow as pa

    digest = pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False)
    return pa.schema([digest, pa.field("vector", pa.list_(pa.float32(), width), nullable=False)])


def _remove(path: Path) -> None:
    logger.warning("%s: damaged, or not a file of cached vectors; its texts are embedded again", path)
    # In a cache that we may only read, the file stays, and is left out again by the next build.
    with suppress(OSError):
        path.unlink()
