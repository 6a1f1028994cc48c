"""Open packed files as streams of their content. The first bytes decide the packing, not the name.

`.gz`, `.bz2`, `.xz`, `.zst` and a `.zip` of one file are unpacked while they are read. A larger `.zip` is
unpacked once into the cache, and then read like a folder. Everything stays within
:mod:`retrieval.corpus.reading_limits`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jora_core.base.atomic_files import atomic_folder
from jora_core.base.digests import text_digest
from jora_core.base.errors import InputError
from retrieval.corpus.folder_walk import is_hidden
from retrieval.corpus.reading_limits import ReadingLimits, reading_limits
from retrieval.text.left_out import other_kind

#: Endings of names that say how a file is packed.
PACKED_ENDINGS = (".gz", ".bz2", ".xz", ".zst")
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)
# A skippable frame, with which seekable zstd files begin.
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
_NAMED = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
#: First bytes of files that hold no text, and what to do with them.
_FOREIGN = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (b"\x04\x22\x4d\x18", "packed by lz4; unpack it"),
    (b"\x1f\x9d", "packed by compress (.Z); unpack it"),
    (b"SQLite format 3\x00", "an SQLite database; export its table as CSV or JSON lines"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.xls, .doc); save it as .xlsx, .csv or .docx"),
    (b"\x89PNG", "a picture; only text can be read"),
    (b"\xff\xd8\xff", "a picture; only text can be read"),
    (b"\xff\xfe\x00\x00", "UTF-32 text, not UTF-8; save the file as UTF-8"),
    (b"\xff\xfe", "UTF-16 text, not UTF-8; save the file as UTF-8"),
    (b"\xfe\xff", "UTF-16 text, not UTF-8; save the file as UTF-8"),
)
_PACKED_READ = 1 << 13
_SMALL_READ = 1 << 9
_MAX_WINDOW = 2**31  # long-distance windows of `zstd --ultra --long=31`
_BUFFER = 1 << 20
_PIECE = 1 << 16


class UnreadableFile(InputError):
    """The error for the contents of a file, as opposed to its place, its permissions and the limits.

    Where each file is one document, such a file is counted by `reason`, and the others are read.
    """

    def __init__(self, message: str, reason: str = "damaged") -> None:
        """Keep the message, and the reason as part of the name of a count, such as `not_utf8`."""
        super().__init__(message)
        self.reason = reason


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open the unpacked bytes of a file as a stream.

    Raises:
        InputError: the file cannot be read, is damaged, or unpacks to more than the limits allow. Damage may
            also be found later, while the caller reads.
    """
    # Here, so that a plan that opens no file does not load the library.
    import zstandard

    try:
        with path.open("rb") as raw:
            head = raw.peek(64)[:64]
            kind = _packing(path, head)
            if kind is None:
                yield raw
            else:
                yield io.BufferedReader(_Bounded(_unpacker(kind, raw, path), raw, path), _BUFFER)
    # Also around the `yield`: a damaged file often shows only while its lines are read.
    except (
        *(OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
        *(zstandard.ZstdError, tarfile.TarError),
    ) as error:
        reason = getattr(error, "strerror", None) or str(error)
        # A damaged gzip file is an OSError too, but none of the system.
        kind = InputError if getattr(error, "errno", None) is not None else UnreadableFile
        how = (
            "check the file and its permissions"
            if kind is InputError
            else "the file is cut short or damaged; pack it or download it again"
        )
        raise kind(f"{path}: cannot be read ({reason}); {how}") from error


def read_whole(path: Path) -> bytes:
    """Return all bytes of a file, unpacked.

    Raises:
        InputError: the file cannot be read, or is larger than the limits allow.
    """
    limits = reading_limits()
    pieces: list[bytes] = []
    size = 0
    with open_binary(path) as handle:
        # Piece by piece: `read` first takes as much memory as it may give, which costs more than to read a
        # small file. A buffered stream gives less than asked for at its end only.
        while len(piece := handle.read(_PIECE)) == _PIECE:
            pieces.append(piece)
            size += _PIECE
            if size > limits.value_bytes:
                raise limits.value_too_large(str(path), "a text file")
    if size + len(piece) > limits.value_bytes:
        raise limits.value_too_large(str(path), "a text file")
    return b"".join([*pieces, piece])


def packing_of(head: bytes) -> str | None:
    """Return how a file is packed whose first bytes are `head`, such as `gzip`; None if it is not."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    return "zstd" if _SKIPPABLE.match(head) else None


def _packing(path: Path, head: bytes) -> str | None:
    """Return how a file is packed, or None for a plain file.

    Raises:
        InputError: the bytes belong to a kind of file that holds no text, or contradict the name.
    """
    kind = packing_of(head)
    if kind is not None:
        return kind
    named = _NAMED.get(path.suffix.lower())
    # A file that was unpacked and kept its name is read; other bytes are a damaged file.
    if named is not None and head and not _plain_text(head):
        raise UnreadableFile(f"{path}: cannot be read (not a {named} file); check the file")
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            encoded = what.startswith("UTF-")
            reason = "of_another_encoding" if encoded else "of_another_kind_than_its_name"
            raise UnreadableFile(f"{path}: is {what}", reason)
    return None


def _plain_text(head: bytes) -> bool:
    # The last bytes may be the first part of a character.
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) >= len(head) - 3 and not re.search(r"[\x00-\x08\x0e-\x1f]", text)


def _unpacker(kind: str, raw: IO[bytes], path: Path) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    if kind == "zip":
        return _only_member(raw, path)
    return _ZstdFrames(raw)


def _only_member(raw: IO[bytes], path: Path) -> IO[bytes]:
    """Return the stream of the only file in a zip archive.

    Raises:
        InputError: the archive has more files, is encrypted, or is a document of an office program.
    """
    archive = zipfile.ZipFile(raw)
    files = [member for member in archive.infolist() if not member.is_dir() and not _hidden(member.filename)]
    names = {member.filename for member in files}
    for part, what in (("xl/", ".xlsx"), ("word/", ".docx"), ("ppt/", ".pptx"), ("META-INF/", ".epub")):
        if any(name.startswith(part) for name in names):
            raise UnreadableFile(
                f"{path}: is a zip archive that looks like {what}; give the file its ending {what}, or save "
                "it as CSV or text",
                "of_another_kind_than_its_name",
            )
    if len(files) != 1:
        raise UnreadableFile(
            f"{path}: is a zip archive of {len(files)} files; give it the ending .zip, or unpack it",
            "of_another_kind_than_its_name",
        )
    return _opened(archive, files[0], path)


def _opened(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> IO[bytes]:
    try:
        return archive.open(member)
    # RuntimeError: a password is needed. NotImplementedError: a rare method of packing.
    except (RuntimeError, NotImplementedError) as error:
        raise UnreadableFile(
            f"{path}: {member.filename} cannot be unpacked ({error}); unpack it by hand"
        ) from error


def _hidden(name: str) -> bool:
    return any(is_hidden(part) for part in name.split("/") if part not in (".", ".."))


class _Bounded(io.RawIOBase):
    """A stream that ends with an error when it has given more bytes than the limits allow.

    They are compared with the packed bytes that were read so far, so that a bomb is noticed at its start.
    """

    def __init__(self, inner: Any, raw: IO[bytes], path: Path) -> None:
        self._inner, self._raw, self._path, self._given = inner, raw, path, 0
        self._limits = reading_limits()
        self._most = self._limits.unpacked_bytes(0)

    def readable(self) -> bool:
        """Return True, because the stream can only be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, and return the number of bytes, or 0 at the end."""
        data = self._inner.read(len(buffer))
        self._given += len(data)
        if self._given > self._most:
            self._most = self._limits.unpacked_bytes(self._raw.tell())
            if self._given > self._most:
                raise self._limits.too_large(self._path)
        buffer[: len(data)] = data
        return len(data)


class _ZstdFrames:
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
        self._step = _SMALL_READ

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, or none at the end."""
        while not self._ready:
            # Few packed bytes at a time, because they may unpack to very many.
            packed = self._raw.read(self._step)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file ends within a zstd frame")
                return b""
            pieces, step = [], len(packed)
            while packed:
                self._frame = self._frame or self._make()
                pieces.append(self._frame.decompress(packed))
                # The bytes behind the end of a frame are the start of the next one.
                packed = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = None
            self._ready = memoryview(b"".join(pieces))
            dense = len(self._ready) > 64 * step
            self._step = _SMALL_READ if dense else min(_PACKED_READ, 2 * self._step)
        data = bytes(self._ready[:size])
        self._ready = self._ready[size:]
        return data


def unpacked_zip(path: Path, suffixes: Sequence[str], cache: Path) -> tuple[Path, Counter[str]]:
    """Unpack a zip archive into the cache, unless it is there already.

    Args:
        path: the archive.
        suffixes: endings of the files that are wanted; others stay in the archive.
        cache: folder of all unpacked archives.

    Returns:
        The folder, and how many files were left out by reason.

    Raises:
        InputError: the archive is damaged or encrypted, or unpacks to more than the limits allow.
    """
    limits = reading_limits()
    try:
        state = path.stat()
        with zipfile.ZipFile(path) as archive:
            wanted, left_out = _members(archive, suffixes)
            most = limits.unpacked_bytes(state.st_size)
            if sum(member.file_size for member in wanted) > most:
                raise limits.too_large(path)
            stamp = text_digest(
                repr((str(path.resolve()), state.st_size, state.st_mtime_ns, sorted(suffixes)))
            )
            folder = cache / stamp[:16] / path.name
            if not folder.is_dir():
                _extract(archive, wanted, folder, (path, limits, most))
            return folder, left_out
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a readable zip archive ({error}); pack or download it again"
        ) from error


def _members(archive: zipfile.ZipFile, suffixes: Sequence[str]) -> tuple[list[zipfile.ZipInfo], Counter[str]]:
    wanted, left_out = [], Counter[str]()
    for member in archive.infolist():
        if member.is_dir():
            continue
        if _hidden(member.filename):
            left_out["file_hidden"] += 1
        # The upper half of the attributes is the Unix mode; 0o120000 is a link.
        elif (member.external_attr >> 16) & 0o170000 == 0o120000:
            left_out["file_is_a_link_in_a_zip"] += 1
        elif not member.filename.lower().endswith(tuple(suffixes)):
            left_out[other_kind(Path(member.filename))] += 1
        else:
            wanted.append(member)
    return wanted, left_out


def _extract(
    archive: zipfile.ZipFile,
    members: Sequence[zipfile.ZipInfo],
    folder: Path,
    bounds: tuple[Path, ReadingLimits, int],
) -> None:
    path, limits, left = bounds
    with atomic_folder(folder.parent) as making:
        (making / folder.name).mkdir()
        for member in members:
            # Names that would lead out of the folder lose those parts.
            parts = [part for part in re.split(r"[/\\]", member.filename) if part not in ("", ".", "..")]
            target = (making / folder.name).joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with _opened(archive, member, path) as source, target.open("wb") as sink:
                # The sizes that the archive states may be wrong.
                while piece := source.read(_BUFFER):
                    left -= len(piece)
                    if left < 0:
                        raise limits.too_large(path)
                    sink.write(piece)
