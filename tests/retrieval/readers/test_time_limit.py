"""A question finds only what existed when it was asked, however much of what came later is more like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_rankings, read_records
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask
from retrieval.tasks.qa import questions as qa_questions

LATER = 300


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("legs", [["bm25"], ["bm25", "dense"]])
def test_later_documents_are_no_candidates(legs: list[str], tiny_embedder: Path, tmp_path: Path) -> None:
    assert LATER > qa_questions.DEPTH, "the first search must find later ones only"
    documents = [{"id": f"new{i}", "text": f"kettle violin kettle {i}", "time": 2e3} for i in range(LATER)]
    documents += [
        {"id": f"old{i}", "text": f"kettle {'lantern orchard ' * (1 + i % 3)}{i}", "time": 500}
        for i in range(30)
    ]
    documents += [{"id": "always", "text": "kettle of the harbour"}]
    asked = {"document_id": "old3", "question": "kettle violin?", "answers": ["x"]}
    questions = [{"id": f"then{i}", "time": 1000, **asked} for i in range(3)]
    questions += [{"id": "now", **asked, "document_id": "old5"}]
    config = ContextConfig(
        embedder=str(tiny_embedder),
        near_duplicates="off",
        test_share=0.0,
        qa=QaTask(
            source=write(tmp_path / "d.jsonl", documents),
            questions=write(tmp_path / "q.jsonl", questions),
            legs=legs,
            n_contexts=4,
        ),
    )
    build_record_files(config, tmp_path / "out")
    rows = {row["id"]: row for row in read_rankings(tmp_path / "out" / "rankings.parquet")}
    assert set(rows) == {"qa:then0", "qa:then1", "qa:then2", "qa:now"}
    for leg in (*legs, "fused"):
        assert all(key.startswith("new") for key in rows["qa:now"][leg])
        for name in ("qa:then0", "qa:then1", "qa:then2"):
            found = rows[name][leg]
            assert len(found) == 20 and not any(key.startswith("new") for key in found)
    # Without what came later, the order is that of the one search.
    everything = {**asked, "id": "end", "time": 10_000}
    write(tmp_path / "q.jsonl", [everything, *questions])
    build_record_files(config, tmp_path / "again")
    (end,) = [row for row in read_rankings(tmp_path / "again" / "rankings.parquet") if row["id"] == "qa:end"]
    assert end["bm25"] == rows["qa:now"]["bm25"]
    for record in read_records(tmp_path / "out" / "records.parquet"):
        if record["id"] != "qa:now":
            assert len(record["context_ids"]) == 4
            assert not any(key.startswith("new") for key in record["context_ids"])
