"""Records as conversations, in both formats, as a reader of conversations takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands.prompts.records_as_messages import write_messages
from jora_core.base.errors import InputError
from jora_core.data.instruction_files import read_alpaca


def test_both_formats_hold_the_records(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"r{number}",
            "instruction": "Answer.",
            "input": f"text\n\nQuestion {number}?",
            "output": f"answer {number}",
            "task": "qa",
            "split": "train" if number % 3 else "test",
            "context_id": "c",
        }
        for number in range(5)
    ]
    records = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist(rows), records)
    for name in ("out.jsonl", "out.parquet"):
        target = tmp_path / name
        assert write_messages(records, target, "Be brief.") == 5
        found = read_alpaca(target)
        assert [(r.id, r.output, r.split, r.context) for r in found] == [
            (row["id"], row["output"], row["split"], "c") for row in rows
        ]
        assert [dict(m) for m in found[1].messages] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Answer.\n\ntext\n\nQuestion 1?"},
            {"role": "assistant", "content": "answer 1"},
        ]
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["task"] == "qa" and first["split"] == "test"
    with pytest.raises(InputError, match=r"expected a name that ends with \.jsonl or \.parquet"):
        write_messages(records, tmp_path / "out.json")
