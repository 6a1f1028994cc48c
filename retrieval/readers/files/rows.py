"""Stream the rows of `.jsonl`, `.json` and `.parquet` files as dictionaries.

Each row comes with its place for errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile, unpacked_name
from retrieval.readers.files.columns import advice, column_names, mapped_rows, unmapped
from retrieval.readers.files.json_stream import first_fields
from retrieval.readers.files.tables import BATCH_ROWS, TABLES, Contents, Row, any_rows, numbered_rows
from retrieval.text.normalize import answer_text
from retrieval.text.values import is_empty, printed, printed_id


def rows(
    file: SourceFile,
    fields: Sequence[str],
    optional: Sequence[str],
    expected: str,
    keys: Sequence[str] = (),
    header: dict[str, Any] | None = None,
    *,
    mapped_by: Mapping[str, str] | None = None,
    nullable: Sequence[str] = (),
) -> Iterator[Row]:
    """Read (place for errors, 1-based row, row) of each row of a file of JSON lines, a JSON list or Parquet.

    Args:
        file: the file.
        fields: fields that each row must have.
        optional: further columns to read of a Parquet file.
        expected: description of a row, for errors.
        keys: names under which a `.json` object holds its list of rows.
        header: receives the fields of the object that come before the list.
        mapped_by: the setting that maps other columns, by kind; an error about the first row proposes it.
        nullable: the names in `fields` whose value may be null: the reader counts such a row.

    Raises:
        InputError: the file is broken, or a row is no object or lacks one of `fields`.
    """
    settings = mapped_by if file.columns is None and mapped_by else {}
    if settings and unpacked_name(file.path).endswith(".parquet"):
        _check_columns(file.path, fields, settings)
    for where, row, value in _values(file, fields, optional, expected, keys, header):
        if not isinstance(value, dict):
            found = "null" if value is None else type(value).__name__
            raise InputError(f"{where}: found {found}, expected {expected}")
        # Other fields with null count as missing, because Parquet has no other way to leave one out.
        missing = [
            name for name in fields if value.get(name) is None and (name not in nullable or name not in value)
        ]
        if missing and file.columns is not None:
            raise InputError(f"{where}: {unmapped(file, missing)}")
        if missing:
            how = advice(file.path, settings) if row == 1 and settings else ""
            raise InputError(f"{where}: field {', '.join(missing)} is missing; expected {expected}{how}")
        yield where, row, value


def _values(
    file: SourceFile,
    fields: Sequence[str],
    optional: Sequence[str],
    expected: str,
    keys: Sequence[str],
    header: dict[str, Any] | None,
) -> Iterator[tuple[str, int, Any]]:
    if file.columns is not None:
        return mapped_rows(file, file.columns, file.columns_field, ())
    if unpacked_name(file.path).endswith(".parquet"):
        return parquet_rows(file.path, fields, optional)
    return any_rows(file.path, Contents(expected, keys, header))


def _check_columns(path: Path, fields: Sequence[str], settings: Mapping[str, str]) -> None:
    """Refuse a Parquet file without a needed column, and say how to map its own."""
    names = column_names(path)
    missing = [name for name in fields if names and name not in names]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; the file has {', '.join(names)[:200]}"
            f"{advice(path, settings)}"
        )


def parquet_rows(path: Path, fields: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    """Read (place for errors, 1-based row, row) of each row of a Parquet file, batch by batch.

    Args:
        path: the file.
        fields: columns that the file must have.
        optional: columns that are read where the file has them.

    Raises:
        InputError: the file is no readable Parquet or lacks a column.
    """
    return numbered_rows(path, _column_batches(path, fields, optional), "Parquet")


def _column_batches(path: Path, fields: Sequence[str], optional: Sequence[str]) -> Iterator[Any]:
    """Yield the batches of the wanted columns of a Parquet file; see `parquet_rows`."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        present = file.schema_arrow.names
        missing = [name for name in fields if name not in present]
        if missing:
            have, want = ", ".join(present) or "none", ", ".join(missing)
            raise InputError(f"{path}: column {want} is missing; the file has {have}; add or rename it")
        wanted = [*fields, *(name for name in optional if name in present)]
        yield from file.iter_batches(BATCH_ROWS, columns=wanted)


def field_names(file: SourceFile, decisive: Sequence[str] = ()) -> list[str]:
    """Return the field names that identify the layout of a file.

    These are the columns, or the fields of the first object up to a field in `decisive`.

    Raises:
        InputError: the file cannot be read or does not begin with an object.
    """
    if file.columns is not None:
        return list(file.columns.fields)
    name = unpacked_name(file.path)
    if name.endswith(TABLES) and not name.endswith(".parquet"):
        return next((list(row) for _, _, row in any_rows(file.path)), [])
    if not name.endswith(".parquet"):
        return first_fields(file.path, decisive)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # The schema stands in the footer; no row is read.
        return list(pq.read_schema(file.path).names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{file.path}: not a readable Parquet file ({error}); write it again") from error


def text_or_empty(value: Any, field: str, where: str) -> str:
    """Return the value of a text field, not folded, or "" for a missing value, which the caller counts.

    Args:
        value: the value in the file.
        field: the field's name, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value is no text.
    """
    return "" if is_empty(value) else text_of(value, field, where)


def text_of(value: Any, field: str, where: str) -> str:
    """Return the value of a text field, not folded. Numbers, days and truth values count as what they print.

    Args:
        value: the value in the file.
        field: the field's name, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value is empty or no text.
    """
    text = value if isinstance(value, str) else printed_id(value)
    if text is None or not text.strip():
        raise InputError(f"{where}: field {field} is empty or no text ({type(value).__name__}); fill it in")
    return text


def texts_of(value: Any, field: str, where: str) -> tuple[str, ...]:
    """Return a text, or a list of texts, without repeats and with their line breaks.

    Numbers, days and truth values count as what they print. Missing values (null, empty texts) are left out,
    so the result may be empty.

    Args:
        value: the value in the file.
        field: the field's name, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value, or an item of the list, is something else, such as an object.
    """
    found: dict[str, None] = {}  # a dict instead of a set: the first answer is taught
    for item in value if isinstance(value, list) else (value,):
        if is_empty(item):
            continue
        text = printed(item)
        if text is None:
            raise InputError(f"{where}: field {field} is no text and no list of texts; give texts or numbers")
        found[answer_text(text)] = None
    found.pop("", None)
    return tuple(found)


def dicts_of(value: Any, field: str, where: str) -> list[dict[str, Any]]:
    """Return a value after checking that it is a list of objects.

    Args:
        value: the value in the file.
        field: the field's name, for errors.
        where: file and row, for errors.

    Raises:
        InputError: the value is no list of objects.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{where}: field {field} is not a list of objects ({type(value).__name__})")
    return value
