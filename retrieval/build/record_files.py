"""The two Parquet files of a build: their schemas, an atomic deterministic writer, checked readers.

The same rows and metadata give the same bytes: fixed row groups, sorted metadata, no times, no paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_core.base.errors import InputError
from retrieval.settings.legs import LEGS

if TYPE_CHECKING:
    import pyarrow as pa

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
    **dict.fromkeys(LEGS, "list"),
    "fused": "list",
    "reranked": "list",
}


def schema(columns: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of a column table above, with key-value metadata in sorted order."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "list": pa.list_(pa.string())}
    fields = [pa.field(name, kinds[kind], nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata=dict(sorted((metadata or {}).items())))


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
