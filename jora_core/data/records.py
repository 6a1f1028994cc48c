"""Reading of a records file, with checks of its columns and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jora_core.base.digests import file_digest
from jora_core.base.errors import InputError
from jora_core.base.record_columns import TRAINING_COLUMNS, TRAINING_OPTIONAL_COLUMNS
from jora_core.base.row_digests import RowDigest, select_rows
from jora_core.data.prompts.conversations import read_messages
from jora_core.data.token_cache import Row
from jora_core.specs.data import DataSpec

# Rows that are Python objects at one time: as objects, a whole file takes several times its size.
_READ_ROWS = 8192


def columns_to_read(spec: DataSpec) -> list[str]:
    """Return the columns to read from a records file, and check that required columns exist.

    Raises:
        InputError: no such file, not Parquet, a column missing or of a wrong type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(spec.records)
    except FileNotFoundError:
        raise InputError(
            f"no records file {spec.records}; build the context first or correct data.records"
        ) from None
    except OSError as err:
        raise InputError(f"cannot read {spec.records}: {err.strerror or err}") from None
    except pa.ArrowInvalid as err:
        raise InputError(f"{spec.records} is not a Parquet file: {str(err).splitlines()[0]}") from None
    names = schema.names
    if "segments" in names:
        # `task` is needed only where the spec selects by it.
        needed = ["segments", *(["task"] if spec.tasks is not None else [])]
        optional = ["suffixes", "id", "task", "split", "context_id"]
    elif "messages" in names and not {"instruction", "input", "output"} <= set(names):
        needed = ["messages", *(["task"] if spec.tasks is not None else [])]
        optional = ["id", "task", "split", "context_id"]
    else:
        needed = list(TRAINING_COLUMNS)
        optional = list(TRAINING_OPTIONAL_COLUMNS)
    if missing := [name for name in needed if name not in names]:
        raise InputError(
            f"{spec.records}: column {missing[0]!r} is missing; expected {', '.join(needed)} "
            "(records), messages (conversations) or segments (weighted text)"
        )
    _check_types(spec.records, schema, needed)
    # A name may be in both lists.
    return list(dict.fromkeys([*needed, *(name for name in optional if name in names)]))


def _check_types(path: Path, schema: Any, needed: Sequence[str]) -> None:
    """Refuse columns of a wrong type before rows are read, where the message would be less clear."""
    import pyarrow as pa

    def nested(kind: Any, depth: int, fields: tuple[str, ...]) -> bool:
        for _ in range(depth):
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                return False
            kind = kind.value_type
        return pa.types.is_struct(kind) and {*fields} <= {field.name for field in kind}

    weighted = ("text", "weight")
    for name, depth, fields in (
        ("segments", 1, weighted),
        ("suffixes", 2, weighted),
        ("messages", 1, ("role", "content")),
    ):
        of_use = name in needed or (name == "suffixes" and "segments" in needed)
        if of_use and name in schema.names and not nested(schema.field(name).type, depth, fields):
            shape = "list<" * depth + f"struct<{', '.join(fields)}>" + ">" * depth
            raise InputError(f"{path}: column {name!r} has type {schema.field(name).type}, expected {shape}")
    for name in (name for name in ("instruction", "input", "output") if name in needed):
        kind = schema.field(name).type
        # polars writes texts as large_string.
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{path}: column {name!r} has type {kind}, expected text")


def read_rows(spec: DataSpec, columns: list[str]) -> Iterator[Row]:
    """Yield the rows that a spec selects. A missing id becomes the number of the row.

    Raises:
        InputError: the file cannot be read, or a text is null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    taken = 0
    number = -1
    try:
        with pq.ParquetFile(spec.records) as file:
            for batch in file.iter_batches(batch_size=_READ_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    # A file without the column has no splits: all of its rows are selected.
                    if row.get("split", spec.split) != spec.split:
                        continue
                    if spec.tasks is not None and row.get("task") not in spec.tasks:
                        continue
                    if taken == spec.max_records:
                        return
                    taken += 1
                    # The number within the file, not within the selection: an id names the same row in each
                    # split.
                    row.setdefault("id", f"row {number}")
                    row.setdefault("context_id", "")
                    _check_row(row, number, spec.records, columns)
                    yield row
    except (OSError, pa.ArrowInvalid) as err:
        raise InputError(f"cannot read {spec.records}: {str(err).splitlines()[0]}") from None


def _check_row(row: Row, number: int, path: Path, columns: list[str]) -> None:
    # The schema cannot tell: most writers mark all columns as nullable.
    kinds = [name for name in ("segments", "messages") if name in columns]
    for name in kinds or ("id", "instruction", "input", "output"):
        if row[name] is None:
            raise InputError(f"{path}, row {number}: {name} is null; every record needs one")
    if "messages" in columns:
        row["messages"] = read_messages(row["messages"], f"{path}, row {number}")


def selection_digest(spec: DataSpec) -> str:
    """Return a digest of the rows that a spec selects, in the columns that training reads.

    Rows of other tasks and splits in the same file are no part of it, unless the file has no ids.

    Raises:
        InputError: the file cannot be read.
    """
    columns = columns_to_read(spec)
    if "id" not in columns:
        # The number of a row in the file is then its id, so every row before it counts.
        return file_digest(spec.records)
    # The file may be written again under the same name while this process runs.
    state = spec.records.stat() if spec.records.is_file() else None
    stamp = (state.st_mtime_ns, state.st_size, state.st_ino) if state else ()
    tasks = None if spec.tasks is None else tuple(spec.tasks)
    return _selection_digest(spec.records, stamp, spec.split, tasks, spec.max_records, tuple(columns))


@lru_cache(maxsize=8)
def _selection_digest(
    path: Path,
    stamp: tuple[int, ...],
    split: str,
    tasks: tuple[str, ...] | None,
    most: int | None,
    columns: tuple[str, ...],
) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted: dict[str, tuple[str, ...]] = {"split": (split,)} if "split" in columns else {}
    if tasks is not None and "task" in columns:
        wanted["task"] = tasks
    digest = RowDigest()
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_READ_ROWS, columns=list(columns)):
                batch = select_rows(batch, **wanted)
                if most is not None:
                    batch = batch.slice(0, most - digest.rows)
                digest.add(batch)
    except (OSError, pa.ArrowInvalid) as err:
        raise InputError(f"cannot read {path}: {str(err).splitlines()[0]}") from None
    return digest.hexdigest()


def selected_records(spec: DataSpec) -> int:
    """Return the number of records that a spec selects."""
    import pyarrow.parquet as pq

    columns = [name for name in columns_to_read(spec) if name in ("split", "task")]
    rows = pq.read_table(spec.records, columns=columns).to_pylist()
    found = sum(
        row.get("split", spec.split) == spec.split and (spec.tasks is None or row.get("task") in spec.tasks)
        for row in rows
    )
    return found if spec.max_records is None else min(found, spec.max_records)
