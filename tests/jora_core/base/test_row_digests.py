"""Digests of rows do not depend on batches, and notice every change of a value."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from jora_core.base.row_digests import RowDigest, select_rows

ROWS = [
    {"text": "ab", "many": ["x", ""], "number": 1, "flag": True, "segments": [{"text": "é", "weight": 0.5}]},
    {"text": "", "many": [], "number": 2, "flag": False, "segments": []},
    {"text": "c", "many": ["y"], "number": 3, "flag": True, "segments": [{"text": "", "weight": 1.0}]},
    {"text": None, "many": None, "number": None, "flag": None, "segments": None},
]


def digest(*batches: pa.RecordBatch) -> str:
    made = RowDigest()
    for batch in batches:
        made.add(batch)
    return made.hexdigest()


def whole(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=pa.RecordBatch.from_pylist(ROWS).schema)


def test_batches_do_not_count() -> None:
    batch = whole(ROWS)
    assert (
        digest(batch)
        == digest(*(batch.slice(n, 1) for n in range(4)))
        == digest(batch.slice(0, 3), batch[3:])
    )
    noisy = whole([ROWS[1], *ROWS, ROWS[0]])
    assert digest(noisy.slice(1, 4)) == digest(batch), "what lies before and behind a slice"
    mask = pa.array([False, True, True, True, True, False])
    assert digest(noisy.filter(mask)) == digest(batch)


@pytest.mark.parametrize(
    "change",
    [
        {"text": "a"},
        {"text": "ba"},
        {"text": None},
        {"many": ["x"]},
        {"many": ["", "x"]},
        {"many": None},
        {"number": 7},
        {"number": None},
        {"flag": False},
        {"segments": [{"text": "é", "weight": 0.25}]},
        {"segments": [{"text": "e", "weight": 0.5}]},
    ],
    ids=str,
)
def test_every_value_counts(change: dict[str, Any]) -> None:
    assert digest(whole([{**ROWS[0], **change}, *ROWS[1:]])) != digest(whole(ROWS))


def test_values_do_not_move_between_rows() -> None:
    first = whole([{**ROWS[0], "text": "a"}, {**ROWS[1], "text": "bc"}])
    second = whole([{**ROWS[0], "text": "ab"}, {**ROWS[1], "text": "c"}])
    assert digest(first) != digest(second)
    null, empty = whole([ROWS[3], ROWS[1]]), whole([ROWS[1], ROWS[3]])
    assert digest(null) != digest(empty)


def test_selected_rows() -> None:
    batch = pa.RecordBatch.from_pydict({"task": ["a", "b", "a"], "split": ["x", "x", "y"], "n": [1, 2, 3]})
    assert select_rows(batch, task=("a",), split=("x",)).to_pydict()["n"] == [1]
    assert select_rows(batch, task=("b", "a")).to_pydict()["n"] == [1, 2, 3]
