"""Columns and readers of the Parquet files of a build: records, rankings and links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from jora_core.base.record_columns import (
    CHANNEL_RECORD_COLUMNS,
    EVIDENCE_RECORD_COLUMNS,
    LEARNED_RECORD_COLUMNS,
    RECORD_COLUMNS,
    SYNTHETIC_RECORD_COLUMNS,
)
from retrieval.evaluation.threads.link_rows import LINK_COLUMNS
from retrieval.settings.context import ContextConfig
from retrieval.settings.legs import LEGS

#: One row a thread or question record. `candidate_ids` are all earlier posts in the window in time order
#: (empty for documents, where every document is a candidate); the opening post may lie before the window.
#: `previous_other_author` and `addressed_then_previous` are what two rules answer (`link_rules`): the post
#: that they name, if it is a candidate, else the previous post. `distance` is the number of messages back to
#: the nearest right one, and 0 without one. `addressed` is whether the comment begins with the name of an
#: earlier author.
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
    "previous_other_author": "list",
    "addressed_then_previous": "list",
    "distance": "int",
    "thread_messages": "int",
    "addressed": "bool",
    **dict.fromkeys(LEGS, "list"),
    "fused": "list",
    "reranked": "list",
}

#: Columns that are there if some task has `fusion: learned`, and empty in rows of other tasks. `learned` is
#: the learned ranking. `learned_scores` are log-probabilities: one for each of `candidate_ids`, and as the
#: last one that the comment answers none of them and starts a conversation.
LEARNED_RANKING_COLUMNS: dict[str, str] = {"learned": "list", "learned_scores": "floats"}


def record_columns(config: ContextConfig) -> dict[str, str]:
    """Return the columns of the `records.parquet` of a configuration."""
    made = config.qa is not None and config.qa.has_made_questions
    channel = config.threads is not None and config.threads.direction == "channel"
    return (
        RECORD_COLUMNS
        | EVIDENCE_RECORD_COLUMNS
        | (SYNTHETIC_RECORD_COLUMNS if made else {})
        | (LEARNED_RECORD_COLUMNS if config.learns_fusion else {})
        | (CHANNEL_RECORD_COLUMNS if channel else {})
    )


def ranking_columns(config: ContextConfig) -> dict[str, str]:
    """Return the columns of the `rankings.parquet` of a configuration."""
    return RANKING_COLUMNS | (LEARNED_RANKING_COLUMNS if config.learns_fusion else {})


def row_values(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Any, ...]:
    """Return the values of a row in the order of the columns.

    A column that is not of the row's task is empty, and a row without `synthetic` is not.
    """
    lists = (
        *CHANNEL_RECORD_COLUMNS,
        *EVIDENCE_RECORD_COLUMNS,
        *LEARNED_RECORD_COLUMNS,
        *LEARNED_RANKING_COLUMNS,
    )
    absent: dict[str, Any] = {name: [] for name in lists}
    absent |= dict.fromkeys(SYNTHETIC_RECORD_COLUMNS, False)
    return tuple(row.get(name, absent[name]) if name in absent else row[name] for name in columns)


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
    optional = [
        *CHANNEL_RECORD_COLUMNS,
        *EVIDENCE_RECORD_COLUMNS,
        *LEARNED_RECORD_COLUMNS,
        *SYNTHETIC_RECORD_COLUMNS,
    ]
    return _select(read_rows(path, list(RECORD_COLUMNS), optional), task, split)


def read_rankings(path: Path, task: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """Read rows of a `rankings.parquet` file, each as a dictionary.

    Args:
        path: the file.
        task: the task whose rows are returned; None: all tasks.
        split: the split whose rows are returned; None: both splits.

    Raises:
        InputError: the file is missing, is no Parquet, or lacks a column.
    """
    return _select(read_rows(path, list(RANKING_COLUMNS), list(LEARNED_RANKING_COLUMNS)), task, split)


def read_links(path: Path, task: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """Read rows of a `links.parquet` file, each as a dictionary.

    Args:
        path: the file.
        task: the task whose rows are returned; None: all tasks.
        split: the split whose rows are returned; None: both splits.

    Raises:
        InputError: the file is missing, is no Parquet, or lacks a column.
    """
    return _select(read_rows(path, list(LINK_COLUMNS)), task, split)


def _select(rows: list[dict[str, Any]], task: str | None, split: str | None) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if (task is None or row["task"] == task) and (split is None or row["split"] == split)
    ]
