"""Columns and readers of the two Parquet files of a build: `records.parquet` and `rankings.parquet`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from jora_core.base.record_columns import RECORD_COLUMNS
from retrieval.settings.legs import LEGS

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


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read columns of a Parquet file and return each row as a dictionary.

    Args:
        path: the file.
        columns: columns that the file must have.
        optional: columns that are read where the file has them.

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
    """Read rows of a `records.parquet` file, each as a dictionary.

    Args:
        path: the file.
        task: the task whose rows are returned; None: all tasks.
        split: the split whose rows are returned; None: both splits.

    Raises:
        InputError: the file is missing, is no Parquet, or lacks a column.
    """
    return _select(read_rows(path, list(RECORD_COLUMNS)), task, split)


def read_rankings(path: Path, task: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """Read rows of a `rankings.parquet` file, each as a dictionary.

    Args:
        path: the file.
        task: the task whose rows are returned; None: all tasks.
        split: the split whose rows are returned; None: both splits.

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
