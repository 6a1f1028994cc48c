"""Frozen dataclasses on disk, in Arrow files that several processes map into memory.

A corpus is read once, as a stream, into such files. Later steps read single rows from the mapped file. So a
build holds only the rows in use in memory, and a second process needs no second copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from jora_core.base.atomic_files import atomic_path
from jora_core.base.errors import write_error
from retrieval.corpus.file_sinks import FileSink

if TYPE_CHECKING:
    import pyarrow as pa

Item = TypeVar("Item")
#: Rows of a batch. All batches but the last are full, so a division gives the batch of a row.
BATCH = 4096


def item_schema(kind: type) -> pa.Schema:
    """Return the Arrow schema of a dataclass.

    A field may be str, int, float, bool, a tuple of these, or one of these or None.

    Raises:
        TypeError: a field is of another type.
    """
    import pyarrow as pa

    # Annotations are text (`from __future__ import annotations`); this makes types of them.
    hints = get_type_hints(kind)
    return pa.schema([_field(f.name, hints[f.name]) for f in fields(kind)])  # type: ignore[arg-type]


def _field(name: str, hint: Any) -> pa.Field:
    import pyarrow as pa

    # `Optional[int]` and `int | None` have different origins.
    optional = get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint)
    if optional:
        (hint,) = [part for part in get_args(hint) if part is not type(None)]
    return pa.field(name, _arrow_type(name, hint), nullable=optional)


def _arrow_type(name: str, hint: Any) -> pa.DataType:
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}
    if hint in plain:
        return plain[hint]
    arguments = get_args(hint)
    # `tuple[str, ...]` and `tuple[int, int]`; a list column has values of one type.
    alike = (len(arguments) == 2 and arguments[1] is Ellipsis) or len(set(arguments)) == 1
    if get_origin(hint) is tuple and alike:
        return pa.list_(pa.field("item", _arrow_type(name, arguments[0]), nullable=False))
    raise TypeError(f"field {name}: {hint} has no column type")


class RowSink(FileSink):
    """An Arrow file that is written row by row. A row is a tuple in the order of the schema."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path, schema)
        self._buffer: list[tuple[Any, ...]] = []

    def _open(self) -> Any:
        import pyarrow as pa

        return pa.ipc.new_file(str(self._temporary), self._schema)

    def append(self, row: tuple[Any, ...]) -> None:
        """Add one row. Rows are written to the disk in batches."""
        self._buffer.append(row)
        self.rows += 1
        if len(self._buffer) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._buffer:
            return
        kinds = self._schema.types
        # Transposed: Arrow converts a column at a time.
        columns = [pa.array(c, t) for c, t in zip(zip(*self._buffer, strict=True), kinds, strict=True)]
        self._buffer = []
        try:
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        except OSError as error:
            raise write_error(self.path, error) from error


class ItemSink(RowSink):
    """An Arrow file that is written item by item. All items are instances of one dataclass."""

    def __init__(self, path: Path, kind: type) -> None:
        super().__init__(path, item_schema(kind))
        names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
        # attrgetter reads all fields in one C call, but of a single name it gives no tuple.
        get = attrgetter(*names)
        self._values = get if len(names) > 1 else lambda item: (get(item),)

    def add(self, item: Any) -> None:
        """Add one item."""
        self.append(self._values(item))


def write_items(path: Path, kind: type[Item], items: Iterable[Item]) -> Items[Item]:
    """Write items to an Arrow file and open the file.

    Args:
        path: the file.
        kind: dataclass of the items.
        items: the items to write.
    """
    with ItemSink(path, kind) as sink:
        for item in items:
            sink.add(item)
    return Items(path, kind)


class Items(Sequence[Item], Generic[Item]):
    """The items of a file that `ItemSink` wrote, as a sequence. The file is mapped into memory, not read."""

    def __init__(self, path: Path, kind: type[Item]) -> None:
        self._batches = map_batches(path)
        self._length = sum(batch.num_rows for batch in self._batches)
        self._kind = kind
        self.names = [f.name for f in fields(kind)]  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> Item:  # type: ignore[override]
        batch, row = self._at(place)
        return self._kind(*(_frozen(batch.column(i)[row].as_py()) for i in range(len(self.names))))

    def __iter__(self) -> Iterator[Item]:
        return self.run(0, self._length)

    def run(self, low: int, high: int, step: int = 512) -> Iterator[Item]:
        """Yield the items `low` to `high` - 1.

        Args:
            low: first item.
            high: last item + 1.
            step: number of items that are converted together, which is much faster than one by one.
        """
        # A part ends where its batch ends, because `slice` works within one batch.
        while low < high:
            batch, row = self._at(low)
            part = batch.slice(row, min(batch.num_rows - row, high - low, step))
            columns = [map(_frozen, part.column(i).to_pylist()) for i in range(len(self.names))]
            yield from (self._kind(*values) for values in zip(*columns, strict=True))
            low += part.num_rows

    def value(self, name: str, place: int) -> Any:
        """Return one field of one item. Only the column of the field is read."""
        batch, row = self._at(place)
        return _frozen(batch.column(self.names.index(name))[row].as_py())

    def column(self, name: str) -> Iterator[Any]:
        """Yield one field of all items."""
        at = self.names.index(name)
        for batch in self._batches:
            yield from map(_frozen, batch.column(at).to_pylist())

    def numbers(self, name: str) -> np.ndarray:
        """Return one field (int, float or bool) of all items as an array."""
        at = self.names.index(name)
        parts = [batch.column(at).to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _at(self, place: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= place < self._length:
            raise IndexError(f"item {place} of {self._length}")
        # Valid because `RowSink` fills every batch but the last.
        at, row = divmod(place, BATCH)
        return self._batches[at], row


def map_batches(path: Path) -> list[pa.RecordBatch]:
    """Return the batches of an Arrow file, mapped into memory."""
    import pyarrow as pa

    # The batches keep the mapping alive; the reader can go.
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def _frozen(value: Any) -> Any:
    """Return a value with its lists, at any depth, as tuples.

    Arrow gives lists, but frozen dataclasses hold tuples.
    """
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def save_array(path: Path, array: np.ndarray) -> np.ndarray:
    """Write an array to a file and return the array mapped from that file.

    The file is written under a temporary name first.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)
    return load_array(path)


def load_array(path: Path) -> np.ndarray:
    """Open an array that `save_array` wrote, mapped into memory."""
    try:
        # No pickles: a file in a shared work folder must not be able to run code.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty array cannot be mapped
        return np.load(path, allow_pickle=False)
