"""Stream the lines of files that are plain, packed (`.gz`, `.bz2`, `.xz`, `.zst`) or archives (`.tar`).

Errors name file and line.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from jora_core.base.errors import InputError
from jora_core.base.json_fields import unique_fields
from retrieval.corpus.reading_limits import reading_limits
from retrieval.corpus.unpacking import open_binary, packing_of

_TAR = (".tar", ".tgz", *(f".tar.{packed}" for packed in ("gz", "bz2", "xz", "zst")))
_LINE_FILES = (".ndjson", ".jsonl", ".json")
#: The escape of half a surrogate pair, which raw UTF-8 cannot hold. Two that belong together match too.
HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_PEEK = 1 << 16
#: A packed file of nothing but line ends would otherwise be read for minutes.
_EMPTY_LINES = 1_000_000
_BOM = "\ufeff"


def is_tar(path: Path) -> bool:
    """Return whether the name of a file is that of a tar archive."""
    return path.name.lower().endswith(_TAR)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read (1-based line number, text without line end) of each line of a UTF-8 file.

    The file is streamed, and unpacked if its first bytes say so.

    Only `\\n` (and `\\r\\n`) end a line: other separators occur inside chat messages. In a file without
    `\\n`, `\\r` ends a line.

    Raises:
        InputError: the file cannot be read, a line is not UTF-8, or a line is larger than the limits allow.
    """
    with open_binary(path) as handle:
        yield from _decoded(handle, str(path))


def _decoded(handle: IO[bytes], label: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(_raw_lines(handle, label), start=1):
        try:
            # A byte order mark stands at the start of a file only. Elsewhere U+FEFF is a character of the
            # text.
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(f"{label}:{number}", raw, f"byte {error.start + 1} of the line") from error
        # Not `splitlines`: it also cuts at U+2028, form feed and others, which occur in messages.
        yield number, text.rstrip("\r\n")


def _raw_lines(handle: IO[bytes], label: str) -> Iterator[bytes]:
    limits = reading_limits()
    most = limits.value_bytes
    if _ends_by_return(handle):
        yield from _lines_by_return(handle, most, label)
        return
    number = empty = 0
    while raw := handle.readline(most + 1):
        number += 1
        if len(raw) < 3:  # at most `\r\n`
            empty += 1
            if empty > _EMPTY_LINES:
                raise InputError(f"{label}:{number}: more than {_EMPTY_LINES} empty lines; remove them")
        elif len(raw) > most:
            raise limits.value_too_large(f"{label}:{number}", "a line")
        yield raw


def _ends_by_return(handle: IO[bytes]) -> bool:
    """Return whether the lines of a file end as on the first Macintosh, by `\\r` alone."""
    # A member of a tar archive has no `peek` in some versions of Python; it is read by `\n`.
    peek = getattr(handle, "peek", None)
    head = peek(_PEEK)[:_PEEK] if peek else b""
    return b"\r" in head[:-1] and b"\n" not in head


def _lines_by_return(handle: IO[bytes], most: int, label: str) -> Iterator[bytes]:
    rest, number = b"", 1
    while piece := handle.read(_PEEK):
        *whole, rest = (rest + piece).replace(b"\n", b"\r").split(b"\r")
        yield from whole
        number += len(whole)
        if len(rest) > most:
            raise reading_limits().value_too_large(f"{label}:{number}", "a line")
    if rest:
        yield rest


def not_utf8(where: str, raw: bytes, place: str) -> InputError:
    """Return the error for bytes that are not UTF-8, with the advice that fits.

    Args:
        where: file and line.
        raw: the bytes.
        place: where in the bytes the first wrong one is.
    """
    if packing_of(raw) is not None:
        return InputError(f"{where}: the file is packed twice; unpack it once")
    if raw.count(0) > len(raw) // 4:
        return InputError(f"{where}: not UTF-8 but UTF-16, or no text at all; save the file as UTF-8")
    return InputError(f"{where}: not UTF-8 ({place}); save the file as UTF-8")


def _archived(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (file for errors, line number, line) of the JSON-lines files in an archive, in its order."""
    found = False
    # `r|` reads the archive as a stream, without seeking, which an unpacked `.zst` cannot do.
    with open_binary(path) as handle, tarfile.open(fileobj=handle, mode="r|") as archive:
        for member in archive:
            # macOS adds a hidden `._NAME` beside each file.
            hidden = PurePosixPath(member.name).name.startswith(".")
            if hidden or not (member.isfile() and member.name.lower().endswith(_LINE_FILES)):
                continue
            found = True
            unpacked = archive.extractfile(member)
            assert unpacked is not None  # it is a file
            name = f"{path}/{member.name}"
            for number, text in _decoded(unpacked, name):
                yield name, number, text
    if not found:
        raise InputError(
            f"{path}: no {', '.join(_LINE_FILES)} file in the archive; expected JSON lines in it"
        )


def _constant(name: str) -> float | None:
    """Return the value of `NaN`, `Infinity` or `-Infinity`, which are no JSON but are written by Python."""
    # Pandas writes a missing value as NaN.
    return None if name == "NaN" else float(name)


#: Reads NaN as null, and refuses objects in which a name has two values.
DECODER = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=unique_fields)


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
        value = DECODER.decode(text)
        # The search for `\u` is faster than that of the expression.
        return mend_surrogates(value) if "\\u" in text and HALF_ESCAPE.search(text) else value
    except json.JSONDecodeError as error:
        row, column = line + error.lineno - 1, error.colno
        raise InputError(
            f"{path}:{row}: broken JSON at column {column} ({error.msg}); expected {expected}; "
            f"{advice(text) if column == 1 else 'mend or remove the line'}"
        ) from error
    except RecursionError as error:
        raise InputError(
            f"{path}:{line}: unusable JSON (brackets nest too deep); expected {expected}"
        ) from error
    except ValueError as error:  # an integer of more than 4,300 digits
        raise InputError(f"{path}:{line}: unusable JSON ({error}); expected {expected}") from error


def advice(text: str) -> str:
    """Return what to do with a text that is no JSON from its first character on."""
    start = text.lstrip()[:2000].lower()
    if start.startswith(("<html", "<!doctype", "<?xml")):
        return "the file is HTML or XML; convert it to JSON lines"
    if start.startswith("version https://git-lfs"):
        return "the file is a pointer of Git LFS; run `git lfs pull`"
    first = start.split("\n", 1)[0]
    if first and not first.startswith(("{", "[", '"{')) and re.search(r"[,;\t]", first):
        return (
            "it looks like a table; give the file the ending .csv or .tsv, and name its columns by `columns`"
        )
    return "mend or remove the line"


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
    plain = str(path)
    lines = _archived(path) if is_tar(path) else ((plain, n, text) for n, text in text_lines(path))
    for name, number, text in lines:
        # A file that was joined from several others has a byte order mark at the start of each part.
        text = text.removeprefix(_BOM)
        if not text or text.isspace():
            continue
        value = parse_json(text, name, number, expected)
        if not isinstance(value, dict):
            raise InputError(f"{name}:{number}: found {type(value).__name__}, expected {expected}")
        yield f"{name}:{number}", number, value
