"""The two Parquet files of a build: their schemas, an atomic deterministic writer, checked readers.

The same rows and metadata give the same bytes: fixed row groups, sorted metadata, no times, no paths.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from retrieval.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 4096

#: column -> kind: "str", "bool", "int", or "list" (of strings)
RECORD_COLUMNS: dict[str, str] = {
    "id": "str",
    "instruction": "str",
    "input": "str",
    "output": "str",
    "task": "str",
    "split": "str",
    "context_id": "str",
    "context_ids": "list",
    "oracle_ids": "list",
    "oracle_in_context": "bool",
    "gold": "list",
    "choices": "list",
    "source": "str",
    "source_row": "int",
}

#: One row a thread or question record. `candidate_ids` are all earlier posts in the window in time order
#: (empty for documents, where every document is a candidate); the opening post may lie before the window.
RANKING_COLUMNS: dict[str, str] = {
    "id": "str",
    "context_id": "str",
    "split": "str",
    "task": "str",
    "candidate_ids": "list",
    "candidate_authors": "list",
    "opening_id": "str",
    "opening_author": "str",
    "gold_ids": "list",
    "gold_authors": "list",
    "bm25": "list",
    "dense": "list",
    "recency": "list",
    "mention": "list",
    "opening": "list",
    "addressed_me": "list",
    "same_author": "list",
    "partner": "list",
    "fused": "list",
    "reranked": "list",
}


def schema(columns: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of a column table above, with key-value metadata in sorted order."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "list": pa.list_(pa.string())}
    fields = [pa.field(name, kinds[kind], nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata=dict(sorted((metadata or {}).items())))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class FileSink(ABC):
    """A file written piece by piece under a temporary name; leaving the `with` normally publishes it, an
    error discards it.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._temporary = temporary_name(path)
        self._writer: Any = None

    @abstractmethod
    def _open(self) -> Any:
        """The writer of the temporary file."""

    def _flush(self) -> None:  # noqa: B027 - a sink that holds nothing back has nothing to write
        """Writes what is still held back."""

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._open()
        except OSError as error:
            raise write_error(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                publish(self._temporary, self.path)
        except OSError as failure:
            if kind is None:
                raise write_error(self.path, failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)


class ParquetSink(FileSink):
    """Rows as Parquet, in row groups of one size."""

    def __init__(self, path: Path, columns: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        super().__init__(path, schema(columns, metadata))

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetWriter(self._temporary, self._schema, compression="zstd", version="2.6")

    def append_batches(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Adds rows of the sink's columns; how they are cut into batches does not change the file."""
        import pyarrow as pa

        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            while batch.num_rows:
                part = batch.slice(0, ROW_GROUP - rows)
                batch = batch.slice(part.num_rows)
                waiting.append(part)
                rows += part.num_rows
                if rows == ROW_GROUP:
                    self._write(pa.Table.from_batches(waiting))
                    waiting, rows = [], 0
        if waiting:
            self._write(pa.Table.from_batches(waiting))

    def _write(self, table: pa.Table) -> None:
        """One row group; in one piece, since pages follow the pieces."""
        self.rows += table.num_rows
        try:
            table = table.combine_chunks().cast(self._schema)
            self._writer.write_table(table, row_group_size=ROW_GROUP)
        except OSError as error:
            raise write_error(self.path, error) from error


def write_error(path: Path, error: OSError) -> InputError:
    """The one line for a file that cannot be written."""
    reason = error.strerror or str(error)
    return InputError(
        f"{path}: cannot be written ({reason}); check free space and permissions of {path.parent}"
    )


def temporary_name(path: Path) -> Path:
    """Where this process writes a file before it gets its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which gets its own name when the block ends well, and goes if not.

    Raises:
        InputError: the file cannot be written.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        publish(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Forces a finished temporary file to disk and gives it its name."""
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)


def text_digest(text: str) -> str:
    """SHA-256 of a text as hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Removes what a killed writer left below a folder that nobody else writes to now."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON with sorted keys, all of it or nothing.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    publish_text(path, text.encode())


def publish_text(path: Path, text: bytes) -> None:
    """Writes a small file, all of it or nothing.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text)


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The named columns of a Parquet file as dictionaries, optional ones where the file has them.

    Raises:
        InputError: the file is missing, is no Parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path}: file does not exist; expected a Parquet file")
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            missing = [name for name in columns if name not in present]
            if missing:
                have, want = ", ".join(present) or "none", ", ".join(missing)
                raise InputError(f"{path}: column {want} is missing; the file has {have}; add or rename it")
            wanted = [*columns, *(name for name in optional if name in present)]
            return file.read(columns=wanted).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); write it again") from error


def read_records(path: Path, task: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a `records.parquet`, of one task or split if named.

    Raises:
        InputError: the file is missing, is no Parquet, or lacks a column.
    """
    return _select(read_rows(path, list(RECORD_COLUMNS)), task, split)


def read_rankings(path: Path, task: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a `rankings.parquet`, of one task or split if named.

    Raises:
        InputError: the file is missing, is no Parquet, or lacks a column.
    """
    return _select(read_rows(path, list(RANKING_COLUMNS)), task, split)


def _select(rows: list[dict[str, Any]], task: str | None, split: str | None) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if (task is None or row["task"] == task) and (split is None or row["split"] == split)
    ]


def read_metadata(path: Path) -> dict[str, str]:
    """The key-value metadata that a build wrote (config, inputs, seed), without Arrow's own.

    Raises:
        InputError: the file is missing or is no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        raw = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from error
    return {key.decode(): value.decode() for key, value in raw.items()}
