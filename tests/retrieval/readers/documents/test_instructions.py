"""Alpaca files become records word for word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from retrieval.corpus.types import Tally
from retrieval.readers.documents.instructions import read_triples
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask
from retrieval.tasks.qa.inputs import document_files
from retrieval.tasks.qa.task import holds_instructions

Write = Callable[[str, str], Path]

ROWS: list[dict[str, Any]] = [
    {
        "instruction": f"Say {i % 25}\n  in words.",
        "input": f"a\n\nb {i % 25}" if i % 2 else "",
        "output": f"o {i}\n",
    }
    for i in range(40)
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_every_form_gives_the_same_records(write: Write, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    forms = [
        write("a.jsonl", lines(ROWS)),
        write("a.json", json.dumps(ROWS, indent=1)),
        tmp_path / "a.parquet",
    ]
    found = []
    for path in forms:
        out = tmp_path / f"out-{path.suffix}"
        metrics = build_record_files(ContextConfig(test_share=0.3, qa=QaTask(source=str(path))), out)
        assert metrics["tasks"]["qa"]["read"] == {"instructions": 40}
        records = read_records(out / "records.parquet")
        found.append([(r["instruction"], r["input"], r["output"], r["split"]) for r in records])
    assert found[0] == found[1] == found[2]
    assert [row[:3] for row in found[0]] == [(r["instruction"], r["input"], r["output"]) for r in ROWS]
    splits: dict[tuple[str, str], set[str]] = {}
    for instruction, text, _, split in found[0]:
        splits.setdefault((instruction, text), set()).add(split)
    assert {split for each in splits.values() for split in each} == {"train", "test"}
    assert all(len(each) == 1 for each in splits.values()), "an instruction twice is on one side of the split"


def test_records_follow_the_contract(write: Write, tmp_path: Path) -> None:
    rows = [
        *ROWS[:6],
        {"id": 7, "instruction": "x", "output": " "},
        {"id": 8, "instruction": "x", "output": "y"},
    ]
    task = QaTask(source=str(write("a.jsonl", lines(rows))), max_records=5)
    metrics = build_record_files(ContextConfig(test_share=0.0, qa=task), tmp_path / "out")
    report = metrics["tasks"]["qa"]
    assert report["dropped"] == {"instruction_without_output": 1, "over_max_train_records": 2}
    for record in read_records(tmp_path / "out" / "records.parquet"):
        assert record["task"] == "qa" and record["id"] == f"qa:{record['context_id']}"
        assert (record["context_ids"], record["oracle_ids"], record["choices"]) == ([], [], [])
        assert record["gold"] == [record["output"]]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": " ", "output": "x"}, r"a\.jsonl:1: field instruction is empty"),
        ({"instruction": "x", "output": ["y"]}, r"a\.jsonl:1: field output is list, expected text"),
        ({"instruction": "x"}, r"a\.jsonl:1: field output is missing; expected an object with instruction"),
    ],
)
def test_bad_rows_are_named(write: Write, row: dict[str, Any], said: str) -> None:
    task = QaTask(source=str(write("a.jsonl", json.dumps(row) + "\n")))
    assert holds_instructions(task)
    with pytest.raises(InputError, match=said):
        list(read_triples(document_files(task), Tally()))


def test_ids_are_unique_and_documents_are_no_instructions(write: Write) -> None:
    twice = QaTask(source=str(write("a.jsonl", lines([{"id": 1, **ROWS[0]}, {"id": 1, **ROWS[1]}]))))
    with pytest.raises(InputError, match=r"a\.jsonl:2: id '1' is used twice"):
        list(read_triples(document_files(twice), Tally()))
    empty = QaTask(source=str(write("b.jsonl", "")), format="alpaca")
    with pytest.raises(InputError, match="no instructions"):
        list(read_triples(document_files(empty), Tally()))
    assert not holds_instructions(QaTask(source=str(write("d.jsonl", '{"id": 1, "text": "x"}\n'))))
    assert not holds_instructions(QaTask(source=str(write("x.md", "# X\n"))))
