"""A digest of the rows of Arrow tables, which does not depend on how the rows are cut into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jora_core.base.digests import json_digest

if TYPE_CHECKING:
    import pyarrow as pa


class RowDigest:
    """The digest of rows that are added batch by batch, in order.

    Each column has hashes of its own: one of its values, and one of the lengths of its texts or lists. So
    rows are hashed as whole buffers, and no Python object is made of a value.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._hashes: dict[str, Any] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch; all batches have the same columns."""
        self.rows += batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._add(name, column)

    def hexdigest(self) -> str:
        """Return the SHA-256 of the rows added so far."""
        parts = {name: found.hexdigest() for name, found in self._hashes.items()}
        return json_digest({"rows": self.rows, "columns": parts})

    def _add(self, name: str, array: pa.Array) -> None:
        import pyarrow as pa

        pc = _compute()
        kind = array.type
        # One byte a value: a null has the buffer of an empty text, and would look like it.
        self._update(f"{name}?", pc.cast(array.is_valid(), pa.uint8()))
        if pa.types.is_struct(kind):
            for field, child in zip(kind, array.flatten(), strict=True):
                self._add(f"{name}.{field.name}", child)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            self._update(f"{name}#", _without_nulls(pc.list_value_length(array)))
            self._add(f"{name}[]", array.flatten())
        elif _is_text(kind):
            self._update(f"{name}#", _without_nulls(pc.binary_length(array)))
            self._update(name, _text_values(array))
        elif pa.types.is_boolean(kind):
            self._update(name, pc.cast(pc.fill_null(array, False), pa.uint8()))
        else:
            self._update(name, pc.fill_null(array, 0))

    def _update(self, name: str, values: Any) -> None:
        found = self._hashes.setdefault(name, hashlib.sha256())
        # Texts are bytes already; numbers are one buffer after the copy, which drops the offset of a slice.
        found.update(
            values if isinstance(values, memoryview) else values.to_numpy(zero_copy_only=False).tobytes()
        )


def _without_nulls(lengths: pa.Array) -> pa.Array:
    import pyarrow as pa

    pc = _compute()
    return pc.cast(pc.fill_null(lengths, 0), pa.int64())


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _text_values(array: pa.Array) -> memoryview:
    """Return the bytes of all texts of an array, one after the other."""
    import pyarrow as pa

    if not len(array):
        return memoryview(b"")
    # The large type has one kind of offsets for all texts, and the values of a slice lie between its ends.
    large = array.cast(pa.large_binary())
    ends = pa.Array.from_buffers(pa.int64(), len(large) + 1, [None, large.buffers()[1]], offset=large.offset)
    values = large.buffers()[2]
    return memoryview(values)[ends[0].as_py() : ends[-1].as_py()] if values else memoryview(b"")


def select_rows(batch: pa.RecordBatch, **values: Sequence[str]) -> pa.RecordBatch:
    """Return the rows in which each named column has one of the given texts."""
    import pyarrow as pa

    for name, wanted in values.items():
        batch = batch.filter(_compute().is_in(batch.column(name), pa.array(wanted, pa.string())))
    return batch


def _compute() -> Any:
    """Return `pyarrow.compute`, whose functions are made at its import, so a type checker sees none."""
    import pyarrow.compute

    return pyarrow.compute
