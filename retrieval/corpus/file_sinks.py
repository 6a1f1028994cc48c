"""Write files row by row. A file gets its final name only when it is complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from jora_core.base.atomic_files import publish, temporary_name
from jora_core.base.errors import write_error
from jora_core.base.record_columns import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 4096


class FileSink(ABC):
    """A file that is written piece by piece under a temporary name, in a `with` block.

    At the normal end of the block the file gets its final name. After an error it is removed.

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
        """Open the temporary file and return its writer."""

    def _flush(self) -> None:  # noqa: B027 - a sink without a buffer has nothing to write
        """Write the rows that are still in the buffer."""

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
            # Also after an error: the open file must be closed before it is deleted.
            self._writer.close()
            if kind is None:
                publish(self._temporary, self.path)
        except OSError as failure:
            # A failure to close after an error in the block must not hide that error.
            if kind is None:
                raise write_error(self.path, failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)


class ParquetSink(FileSink):
    """A Parquet file whose row groups all have the same number of rows."""

    def __init__(self, path: Path, columns: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        super().__init__(path, arrow_schema(columns, metadata))

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        # The version is fixed, so that another release of pyarrow keeps writing the same types.
        return pq.ParquetWriter(self._temporary, self._schema, compression="zstd", version="2.6")

    def append_batches(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Add rows that have the sink's columns.

        The sizes of the batches do not change the bytes of the file.
        """
        import pyarrow as pa

        # A Parquet file differs in its bytes with its row groups, and the shards of a build may be cut
        # anyhow. So rows are collected until a row group is full.

        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            while batch.num_rows:
                # Slices are views; rows are copied once, in `_write`.
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
        """Write one row group.

        The rows are copied into contiguous memory first, because the pages of the file follow the pieces of
        memory.
        """
        self.rows += table.num_rows
        try:
            table = table.combine_chunks().cast(self._schema)
            self._writer.write_table(table, row_group_size=ROW_GROUP)
        except OSError as error:
            raise write_error(self.path, error) from error
