"""Stream the rows of files of any kind: JSON, CSV, TSV, XLSX, Arrow and Parquet, as dictionaries.

The dialect of a CSV file is named, or found from its first lines.
"""

from __future__ import annotations

import csv
import itertools
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from retrieval.corpus.reading_limits import reading_limits
from retrieval.corpus.source_files import unpacked_name
from retrieval.readers.files.csv_dialect import find_separator, named_separator
from retrieval.readers.files.json_stream import holds_json_array, stream_items
from retrieval.readers.files.packed_lines import json_objects, text_lines

Row = tuple[str, int, dict[str, Any]]

#: Endings of the tables that are read here.
TABLES = (".csv", ".tsv", ".xlsx", ".parquet", ".arrow")
#: Rows that are read at once: a row group of Parquet may have millions.
BATCH_ROWS = 1024


@dataclass(frozen=True)
class Contents:
    """What a reader knows about the rows of a file.

    Attributes:
        expected: description of a row, for errors.
        keys: names under which a JSON object holds its list of rows.
        header: receives the fields of a JSON object that come before the list.
        delimiter: sign between the cells of a CSV file; None finds it.
        sheet: name of the sheet of an `.xlsx` file; None takes the first.
    """

    expected: str = "a row: an object with named fields"
    keys: Sequence[str] = ()
    header: dict[str, Any] | None = None
    delimiter: str | None = None
    sheet: str | None = None


_ANYTHING = Contents()


def any_rows(path: Path, contents: Contents = _ANYTHING) -> Iterator[tuple[str, int, Any]]:
    """Read (place for errors, 1-based row, row) of each row of a table, of JSON lines or of a JSON value.

    Args:
        path: the file, plain or packed.
        contents: what is known about its rows.

    Raises:
        InputError: the file is broken, a row has more cells than the header, or a library is missing.
    """
    name = unpacked_name(path)
    if name.endswith(".xlsx"):
        return _sheet_rows(path, contents.sheet)
    if name.endswith((".parquet", ".arrow")):
        parquet = name.endswith(".parquet")
        return numbered_rows(path, _batches(path, parquet), "Parquet" if parquet else "Arrow")
    if name.endswith(TABLES):
        return _text_rows(path, contents.delimiter)
    # JSON lines are often called `.json`, and lists `.jsonl`.
    if name.endswith(".json") or holds_json_array(path):
        return stream_items(path, contents.expected, contents.keys, contents.header)
    return json_objects(path, contents.expected)


def _text_rows(path: Path, delimiter: str | None) -> Iterator[Row]:
    # The limit is one of the whole process; it never shrinks, because other readers raise it too.
    csv.field_size_limit(max(csv.field_size_limit(), reading_limits().value_bytes))
    if delimiter is None:
        first, others = itertools.tee(text for _, text in text_lines(path))
        likely = "\t" if unpacked_name(path).endswith(".tsv") else ","
        delimiter = named_separator(next(first, "")) or find_separator(others, likely)
    # The lines of the current row: a quote that is never closed makes all that follows one cell, silently.
    current: list[str] = []

    def lines() -> Iterator[str]:
        for _, text in text_lines(path):
            current.append(text)
            yield f"{text}\n"

    reader = csv.reader(lines(), delimiter=delimiter)
    header: list[str] = []
    number = 0
    try:
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if len(current) > 1 and sum(line.count('"') for line in current) % 2:
                first = reader.line_num - len(current) + 1
                raise InputError(f"{path}:{first}: a quote is never closed; mend the quotes of the table")
            current.clear()
            if not header and reader.line_num == 1 and named_separator(delimiter.join(cells)):
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(cells, where)
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise InputError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)}; mend the quotes or the "
                    "header of the table, or name the delimiter"
                )
            number += 1
            # Short rows lack their last cells.
            yield (
                where,
                number,
                dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=False)),
            )
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: broken table ({error}); mend its quotes") from error


def _header(cells: Sequence[Any], where: str) -> list[str]:
    names = [str(cell).strip() if cell is not None else "" for cell in cells]
    while names and not names[-1]:
        names.pop()
    names = [name or f"column {number}" for number, name in enumerate(names, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: column {twice!r} is twice in the header; rename one of them")
    return names


def _sheet_rows(path: Path, sheet: str | None) -> Iterator[Row]:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise InputError(
            f"{path}: .xlsx needs a package that is not installed; pip install openpyxl, or save as CSV"
        ) from error
    limits = reading_limits()
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > limits.unpacked_bytes(
                path.stat().st_size
            ):
                raise limits.too_large(path)
        book = load_workbook(path, read_only=True, data_only=True)
        if sheet is not None and sheet not in book.sheetnames:
            raise InputError(f"{path}: has no sheet {sheet!r}; it has {', '.join(book.sheetnames)[:300]}")
        page = book[sheet] if sheet is not None else book.worksheets[0]
        if sheet is None and len(book.worksheets) > 1:
            others = ", ".join(other.title for other in book.worksheets[1:])
            notice(f"{path}: the sheet {page.title} is read; left out: {others:.300} (`sheet` names one)")
        header: list[str] = []
        errors = 0
        for number, row in enumerate(page.iter_rows(), start=1):
            # `#DIV/0!` is what a formula failed with, and no value. As a text it would be taught.
            errors += sum(cell.data_type == "e" for cell in row)
            cells = [None if cell.data_type == "e" else cell.value for cell in row]
            if all(cell is None or cell == "" for cell in cells):
                continue
            where = f"{path}: row {number}"
            if not header:
                header = _header(cells, where)
            else:
                yield where, number, dict(zip(header, cells, strict=False))
        book.close()
        if errors:
            notice(f"{path}: {errors} cells with an error of a formula, such as #DIV/0!, are read as empty")
    except InputError:
        raise
    except Exception as error:  # a broken workbook gives any exception, from deep within the library
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a readable .xlsx file ({reason:.200}); save it again") from error


def numbered_rows(path: Path, batches: Iterable[Any], kind: str) -> Iterator[Row]:
    """Yield (place for errors, 1-based row, row) of each row of Arrow's batches.

    Args:
        path: the file, for errors.
        batches: record batches, read while this function runs.
        kind: what the file is, for errors.

    Raises:
        InputError: the file is broken.
    """
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            # Offsets of a damaged file lead out of it, and reading there would end the process.
            batch.validate(full=True)
            holds_bytes = any(_holds_bytes(column) for column in batch.schema.types)
            # A batch of an Arrow file may be the whole table.
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for value in batch.slice(start, BATCH_ROWS).to_pylist():
                    number += 1
                    yield f"{path}:{number}", number, _decoded(value) if holds_bytes else value
    # An InputError is a ValueError, which the next clause would report as a broken file.
    except InputError:
        raise
    # Values out of Python's range are ValueErrors, such as dates beyond the year 9999.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: not a readable {kind} file ({error}); write it again") from error


def _holds_bytes(column: Any) -> bool:
    """Return whether a column of this type, or a part of its values, is binary."""
    import pyarrow.types as kinds

    if kinds.is_dictionary(column):
        return _holds_bytes(column.value_type)
    if column.num_fields:
        return any(_holds_bytes(column.field(number).type) for number in range(column.num_fields))
    return kinds.is_binary(column) or kinds.is_large_binary(column) or kinds.is_binary_view(column)


def _decoded(value: Any) -> Any:
    """Return a value with text for the bytes in it that are UTF-8.

    Writers that do not mark their texts as such (Spark's older versions, Impala) leave columns of type
    binary. Other bytes, such as pictures, stay, and are refused where a text is wanted.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value


def _batches(path: Path, parquet: bool) -> Iterator[Any]:
    """Yield the batches of a Parquet file, or of an Arrow file or stream; `datasets` saves streams."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if parquet:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS)
        return
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            source.seek(0)
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
