"""Lines and JSON values of files, with errors that name file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.errors import InputError


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(1-based line number, text without line end) of a UTF-8 file, gzip by its suffix, streaming.

    Only `\\n` (and `\\r\\n`) end a line: other separators occur inside chat messages.
    Raises:
        InputError: the file cannot be read or a line is not UTF-8.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    where = f"byte {error.start + 1} of the line"
                    raise InputError(
                        f"{path}:{number}: not UTF-8 ({where}); save the file as UTF-8"
                    ) from error
                yield number, text.rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the file and its permissions") from error


def parse_json(text: str, path: Path, line: int, expected: str) -> Any:
    """One JSON value.

    Raises:
        InputError: it is not JSON; the line and column are named.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        row, column = line + error.lineno - 1, error.colno
        raise InputError(
            f"{path}:{row}: broken JSON at column {column} ({error.msg}); expected {expected}; mend or "
            "remove the line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{line}: unusable JSON ({error}); expected {expected}") from error


def json_objects(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) for every non-blank line of a JSON-lines file.

    Raises:
        InputError: a line is broken or is no object.
    """
    for number, text in text_lines(path):
        if not text.strip():
            continue
        value = parse_json(text, path, number, expected)
        if not isinstance(value, dict):
            raise InputError(f"{path}:{number}: found {type(value).__name__}, expected {expected}")
        yield number, value
