"""Read large JSON files item by item: an array, an object with one long array in it, or values in a row.

Only one item is in memory at a time, each parsed by the standard library. (Event parsers for this, such as
ijson, keep the path of every level: a line of 100,000 brackets takes them 25 GB.)
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jora_core.base.errors import InputError
from jora_core.base.json_fields import repeated_field
from retrieval.corpus.reading_limits import reading_limits
from retrieval.corpus.unpacking import open_binary
from retrieval.readers.files.packed_lines import (
    DECODER,
    HALF_ESCAPE,
    advice,
    is_tar,
    mend_surrogates,
    not_utf8,
)

_READ = 1 << 16
_START = 4096
_BLANK = b" \t\r\n\xef\xbb\xbf"
_UNSURE = 64  # an error so near to the end of what was read may be because the rest is missing
# With the byte order mark, which stands between the parts of a file that was joined from others.
_SPACE = re.compile("[ \\t\\r\\n\ufeff]*")


def stream_items(
    path: Path, expected: str, keys: Sequence[str] = (), header: dict[str, Any] | None = None
) -> Iterator[tuple[str, int, Any]]:
    """Read (place for errors, 1-based position, item) of each item of a file.

    The items are those of an array, which is the whole file or the value of one of `keys` in the top-level
    object. Or they follow one another in the file, as JSON lines that are called `.json` do.

    Args:
        path: the file, plain or packed.
        expected: description of the expected content, for errors.
        keys: names of the array; without names, a top-level object is an item. With "" among them, an object
            without such an array is an item too. `chats.list` is the array `list` in the object `chats`.
        header: receives the fields of the top-level object that come before the array.

    Raises:
        InputError: the JSON is broken (line and column are named), has no such array, or has an item that is
            larger than the limits allow.
    """
    position = 0
    fields = header if header is not None else {}
    # Whether the file has arrays within objects; if not, an object is an item.
    within = bool(keys)
    with open_binary(path) as handle:
        reader = _Reader(handle, path, expected)
        if not reader.peek():
            raise reader.error("the file is empty")
        while first := reader.peek():
            if first == "[":
                for where, value in _array(reader, path, position):
                    position += 1
                    yield where, position, value
                continue
            where = f"{path}:{reader.line()}"
            if first == "{" and within:
                fields.clear()
                walk = _Walk(reader, path, position)
                for place, value in walk.items(keys, fields):
                    yield place, walk.position, value
                position = walk.position
                if walk.found:
                    continue
                if "" not in keys and not reader.peek():
                    raise walk.missing
                within, value = False, dict(fields)
            else:
                value = reader.value()
            position += 1
            yield where, position, value


def _array(reader: _Reader, path: Path, before: int) -> Iterator[tuple[str, Any]]:
    """Yield (place for errors, item) of an array. `before` items came before it in the file."""
    reader.take("[")
    first = True
    while reader.peek() != "]":
        if not first:
            reader.take(",")
        first = False
        before += 1
        # `line()` first moves to the item, so the number is the line on which the item begins.
        where = f"{path}: item {before} (line {reader.line()})"
        yield where, reader.value()
    reader.take("]")


def holds_json_array(path: Path) -> bool:
    """Return whether a file of any name is a JSON array or an indented JSON value, and no JSON lines."""
    if is_tar(path):
        return False
    with open_binary(path) as handle:
        start = handle.read(_START).lstrip(_BLANK)
    # A line of JSON lines is an object. `{` alone on its line is the start of an indented object.
    return start.startswith(b"[") or re.match(rb"\{[ \t]*\r?\n", start) is not None


def first_fields(path: Path, decisive: Sequence[str] = ()) -> list[str]:
    """Return the field names of a JSON file's first object.

    In an array, this is the first item. The names end with the first one that is in `decisive`.

    Raises:
        InputError: the file cannot be read or does not begin with an object.
    """
    expected = "a JSON object"
    with open_binary(path) as handle:
        reader = _Reader(handle, path, expected)
        if reader.peek() == "[":
            reader.take("[")
        names: list[str] = []
        reader.take("{")
        while reader.peek() != "}":
            if names:
                reader.take(",")
            names.append(reader.name())
            # Stops before the value: the value of `data` or `messages` may be the whole file.
            if names[-1] in decisive:
                break
            reader.take(":")
            reader.value()
        return names


class _Walk:
    """The walk through an object to the items of its arrays, all of which are read.

    Archives have more than one: Telegram's list the chats that one has left apart, and some of Mastodon's
    name `orderedItems` twice, the first time with an empty array.

    Attributes:
        position: items of the file that were read.
        found: whether the object has such an array.
        missing: the error that it has none.
    """

    def __init__(self, reader: _Reader, path: Path, position: int) -> None:
        self._reader, self._path = reader, path
        self.position, self.found = position, False
        self.missing: InputError

    def items(self, keys: Sequence[str], header: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield (place for errors, item) of each array of `keys`; store the fields before them in `header`.

        Raises:
            InputError: the JSON is broken.
        """
        reader = self._reader
        reader.take("{")
        first = True
        while reader.peek() != "}":
            if not first:
                reader.take(",")
            first = False
            name = reader.name()
            reader.take(":")
            inner = [key.partition(".")[2] for key in keys if key.startswith(f"{name}.")]
            if name in keys and reader.peek() == "[":
                self.found = True
                for where, value in _array(reader, self._path, self.position):
                    self.position += 1
                    yield where, value
            elif inner and reader.peek() == "{":
                nested: dict[str, Any] = {}
                yield from self.items(inner, nested)
                header[name] = nested
            else:
                value = reader.value()
                if not self.found:
                    if header.get(name, value) != value:
                        raise reader.error(repeated_field(name))
                    header[name] = value
        # Made here, because the error names this place.
        self.missing = reader.error(f"no list {' or '.join(keys)} in the object")
        reader.take("}")


class _Reader:
    """A window over the text of a file, which is read only as far as the current value needs."""

    def __init__(self, handle: IO[bytes], path: Path, expected: str) -> None:
        self._handle, self._path, self._expected = handle, path, expected
        # Incremental, because a read may end within a character. `sig` drops the byte order mark that Windows
        # editors write.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._limits = reading_limits()
        self._text, self._at, self._ended = "", 0, False
        self._line, self._counted = 1, 0  # the line of a place of the window, counted so far
        self._column = 0  # characters of the window's first line that lie before the window

    def line(self) -> int:
        """Return the line number of the next token."""
        self.peek()
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def peek(self) -> str:
        """Return the next character that is no white space, or "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None  # an empty match at least
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> None:
        """Consume one character, which must be `wanted`."""
        found = self.peek()
        if found != wanted:
            raise self.error(f"found {found or 'the end'}, expected {wanted}")
        self._at += 1

    def name(self) -> str:
        """Consume the name of a field and return the name."""
        if self.peek() != '"':
            raise self.error("expected a field name in double quotes")
        return self.value()

    def value(self) -> Any:
        """Consume one whole JSON value and return the value."""
        self.peek()
        while True:
            try:
                # `raw_decode` parses one value and returns its end, so the C parser does the work without an
                # event loop.
                found, end = DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more():  # a number may go on
                    start, self._at = self._at, end
                    halves = HALF_ESCAPE.search(self._text, start, end)
                    return found if halves is None else mend_surrogates(found)
            except json.JSONDecodeError as error:
                # A string that the window cuts is reported at its start ("Unterminated string"), which may be
                # far from the end. Every other cut shows near the end: in a literal, a number, an escape.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _UNSURE
                if not cut or not self._more(double=True):
                    raise self.error(error.msg, error.pos) from error
            except RecursionError as error:
                row = self._line + self._text.count("\n", self._counted, self._at)
                raise InputError(
                    f"{self._path}:{row}: unusable JSON (brackets nest too deep); expected {self._expected}"
                ) from error
            except InputError:
                raise
            # An integer of more than 4,300 digits, which Python refuses to convert.
            except ValueError as error:
                raise self.error(str(error)) from error

    def error(self, what: str, place: int | None = None) -> InputError:
        """Return the error for a place of the window, by default the place of the next token."""
        at = self._at if place is None else place
        row = self._line + self._text.count("\n", self._counted, at)
        start = self._text.rfind("\n", 0, at)
        column = at - start if start >= 0 else at + 1 + self._column
        hint = advice(self._text[at:]) if row == column == 1 else ""
        hint = f"; {hint}" if hint and not hint.startswith("mend") else ""
        return InputError(
            f"{self._path}:{row}: broken JSON at column {column} ({what}); expected {self._expected}{hint}"
        )

    def _more(self, double: bool = False) -> bool:
        """Read more text and drop the consumed text. Doubling the window keeps the retries of a long item
        linear.
        """
        if self._ended:
            return False
        # Line and column are kept up to date before the text in front of the place is forgotten.
        self._line += self._text.count("\n", self._counted, self._at)
        last = self._text.rfind("\n", 0, self._at)
        self._column = self._at - last - 1 if last >= 0 else self._column + self._at
        self._text, self._at, self._counted = self._text[self._at :], 0, 0
        if len(self._text) > self._limits.value_bytes:
            raise self._limits.value_too_large(f"{self._path}:{self._line}", "one value")
        # A cut value is parsed again from its start. With a window that doubles, all these attempts together
        # cost about twice the last one.
        raw = self._handle.read(max(_READ, len(self._text)) if double else _READ)
        self._ended = not raw
        try:
            self._text += self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            # `error.object` also has the bytes of an incomplete character from the read before.
            row = self._line + self._text.count("\n") + error.object[: error.start].count(b"\n")
            raise not_utf8(f"{self._path}:{row}", error.object, f"byte {error.start + 1}") from error
        return True
