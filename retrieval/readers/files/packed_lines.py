"""Stream the lines of files that are plain, packed (`.gz`, `.zst`) or archives (`.tar`).

Errors name file and line.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jora_core.base.errors import InputError

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.zst")
_LINE_FILES = (".ndjson", ".jsonl", ".json")
_PACKED_READ = 1 << 13
_MAX_WINDOW = 2**31  # long-distance windows of `zstd --ultra --long=31`
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open the unpacked bytes of a file as a stream. The ending of the name decides between `.gz`, `.zst` and
    plain.

    Raises:
        InputError: the file cannot be read or is damaged. Damage may also be found later, while the caller
            reads.
    """
    # Here, so that a plan that opens no file does not load the library.
    import zstandard

    try:
        with path.open("rb") as raw:
            if path.name.endswith((".gz", ".tgz")):
                with gzip.open(raw, "rb") as unpacked:
                    yield unpacked  # type: ignore[misc]
            elif path.name.endswith(".zst"):
                # The buffer gives `readline`, which a raw stream does bytewise.
                yield io.BufferedReader(_Unpacked(raw), 1 << 20)
            else:
                yield raw
    # Also around the `yield`: a damaged file often shows only while its lines are read.
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the file and its permissions") from error


class _Unpacked(io.RawIOBase):
    """A stream of the unpacked bytes of all zstd frames of a file.

    The reader of the library accepts a file that ends within a frame. Here such a file is an error.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._make = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj
        # None between two frames. Dumps are often several frames, one behind the other.
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Return True, because the stream can only be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the next packed bytes, and return the number of bytes, or 0 at the end."""
        while not self._ready:
            # Few packed bytes at a time, because they may unpack to very many.
            packed = self._raw.read(_PACKED_READ)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file ends within a zstd frame")
                return 0
            pieces = []
            while packed:
                self._frame = self._frame or self._make()
                pieces.append(self._frame.decompress(packed))
                # The bytes behind the end of a frame are the start of the next one.
                packed = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = None
            self._ready = memoryview(b"".join(pieces))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def is_tar(path: Path) -> bool:
    """Return whether the name of a file is that of a tar archive."""
    return path.name.endswith(_TAR)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read (1-based line number, text without line end) of each line of a UTF-8 file.

    The file is streamed. The ending of its name decides how it is unpacked.

    Only `\\n` (and `\\r\\n`) end a line: other separators occur inside chat messages.

    Raises:
        InputError: the file cannot be read or a line is not UTF-8.
    """
    with open_binary(path) as handle:
        yield from _decoded(handle, str(path))


def _decoded(handle: IO[bytes], label: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(handle, start=1):
        try:
            # A byte order mark stands at the start of a file only. Elsewhere U+FEFF is a character of the
            # text.
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {error.start + 1} of the line"
            raise InputError(f"{label}:{number}: not UTF-8 ({where}); save the file as UTF-8") from error
        # Not `splitlines`: it also cuts at U+2028, form feed and others, which occur in messages.
        yield number, text.rstrip("\r\n")


def _archived(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (place, line number, line) of each line of the JSON-lines files in an archive, in its order."""
    found = False
    # `r|` reads the archive as a stream, without seeking, which an unpacked `.zst` cannot do.
    with open_binary(path) as handle, tarfile.open(fileobj=handle, mode="r|") as archive:
        for member in archive:
            if not (member.isfile() and member.name.endswith(_LINE_FILES)):
                continue
            found = True
            unpacked = archive.extractfile(member)
            assert unpacked is not None  # it is a file
            for number, text in _decoded(unpacked, f"{path}/{member.name}"):
                yield f"{path}/{member.name}:{number}", number, text
    if not found:
        raise InputError(
            f"{path}: no {', '.join(_LINE_FILES)} file in the archive; expected JSON lines in it"
        )


def parse_json(text: str, path: Path | str, line: int, expected: str) -> Any:
    """Parse one JSON value. Lone surrogates, which no text may hold, become U+FFFD.

    Args:
        text: the JSON text.
        path: the file of the value, for errors.
        line: the 1-based line on which the value begins.
        expected: description of the expected value, for errors.

    Raises:
        InputError: the text is not JSON. The message names the line and column.
    """
    try:
        value = json.loads(text)
        # Only an escape such as `\ud83d` can make half a pair: raw UTF-8 cannot hold one.
        return mend_surrogates(value) if _SURROGATE.search(text) else value
    except json.JSONDecodeError as error:
        row, column = line + error.lineno - 1, error.colno
        raise InputError(
            f"{path}:{row}: broken JSON at column {column} ({error.msg}); expected {expected}; mend or "
            "remove the line"
        ) from error
    # ValueError: an integer of more than 4,300 digits. RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{line}: unusable JSON ({error}); expected {expected}") from error


def mend_surrogates(value: Any) -> Any:
    """Return a JSON value whose texts can be encoded as UTF-8: lone surrogates become U+FFFD."""
    if isinstance(value, str):
        # Through UTF-16, where two halves that belong together become one character, and a lone half becomes
        # U+FFFD.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [mend_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {mend_surrogates(key): mend_surrogates(item) for key, item in value.items()}
    return value


def json_objects(path: Path, expected: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Read (place for errors, line, object) of every non-blank line of a JSON-lines file.

    Of an archive, the lines of all its files are read.

    Raises:
        InputError: a line is broken or holds no object.
    """
    lines = _archived(path) if is_tar(path) else ((f"{path}:{n}", n, text) for n, text in text_lines(path))
    for where, number, text in lines:
        if not text.strip():
            continue
        # `where` is `path:line`; `parse_json` adds the line itself, because the error may be on a later line.
        value = parse_json(text, where.rsplit(":", 1)[0], number, expected)
        if not isinstance(value, dict):
            raise InputError(f"{where}: found {type(value).__name__}, expected {expected}")
        yield where, number, value
