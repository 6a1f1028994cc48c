"""New questions get the prompts of held-out records, and the prepared corpus is read once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jora_core.base.errors import InputError
from retrieval.build.ask import ask_corpus
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, TablesTask, ThreadsTask
from retrieval.tasks.asking import Asked, Inquiry
from tests.retrieval.conftest import thread


def asked(
    config: ContextConfig, task: str, work: Path, *inquiries: Inquiry, top: int | None = None
) -> list[Asked]:
    return ask_corpus(config, task, inquiries, work, top, lambda *_: None)


def by_id(records: Path) -> dict[str, dict[str, Any]]:
    return {record["id"]: record for record in read_records(records / "records.parquet")}


@pytest.mark.parametrize("legs", [["bm25"], pytest.param(["bm25", "dense"], marks=pytest.mark.slow)])
def test_a_question_reads_what_a_held_out_one_does(
    qa_files: tuple[Path, Path], request: pytest.FixtureRequest, tmp_path: Path, legs: list[str]
) -> None:
    embedder = str(request.getfixturevalue("tiny_embedder")) if "dense" in legs else None
    task = QaTask(source=str(qa_files[0]), questions=str(qa_files[1]), n_contexts=4, legs=legs)
    config = ContextConfig(seed=1, test_share=0.3, qa=task, embedder=embedder)
    build_record_files(config, tmp_path / "out")
    held_out = [record for record in by_id(tmp_path / "out").values() if record["split"] == "test"]
    texts = [record["input"].rpartition("Question: ")[2] for record in held_out]
    found = asked(config, "qa", tmp_path / "work", *(Inquiry(str(n), text) for n, text in enumerate(texts)))
    assert len(found) == len(held_out) > 5
    for one, record in zip(found, held_out, strict=True):
        # The order is drawn by the question's id, which differs.
        assert sorted(one.record["context_ids"]) == sorted(record["context_ids"])
        assert one.record["instruction"] == record["instruction"]
        assert one.record["input"].rpartition("\n\n")[2] == record["input"].rpartition("\n\n")[2]
        assert [text.id for text in one.texts] == one.record["context_ids"]
        assert sorted(text.rank for text in one.texts) == [1, 2, 3, 4]
    (more,) = asked(config, "qa", tmp_path / "work", Inquiry("a", texts[0]), top=6)
    assert len(more.texts) == 6


def test_a_new_post_reads_what_it_would_in_its_thread(tmp_path: Path) -> None:
    """The last post of a thread, asked of a corpus without it, has the prompt of its own record."""
    threads = [thread(1000 + 50 * number, 8) for number in range(30)]

    def config(name: str) -> ContextConfig:
        path = tmp_path / f"{name}.ndjson"
        path.write_text("".join(json.dumps(one) + "\n" for one in threads))
        # More posts than a thread has: the words of a removed post change the weights of all others.
        task = ThreadsTask(source=str(path), legs=["bm25", "recency"], n_contexts=9, format="4chan")
        return ContextConfig(seed=0, test_share=0.5, threads=task)

    build_record_files(config("whole"), tmp_path / "out")
    held_out = [record for record in by_id(tmp_path / "out").values() if record["split"] == "test"]
    record = max(held_out, key=lambda record: len(record["context_ids"]))
    _, first, last = record["id"].split(":")
    own = next(one for one in threads if one["posts"][0]["no"] == int(first))
    own["posts"] = [post for post in own["posts"] if post["no"] < int(last)]
    author, _, text = record["input"].rpartition("\n\n")[2].removeprefix("Comment by ").partition(": ")
    cut, work = config("cut"), tmp_path / "work"
    (found,) = asked(cut, "threads", work, Inquiry("a", text, first, author))
    for column in ("instruction", "input", "choices", "context_id", "context_ids"):
        assert found.record[column] == record[column], column
    assert [text.label for text in found.texts] == record["choices"] and len(found.texts) > 5
    for given, said in (("", "--thread is missing"), ("1351", "--thread 1351: no such thread")):
        with pytest.raises(InputError, match=f"{said}; .*its thread; (its ids are such as|the nearest are)"):
            asked(cut, "threads", work, Inquiry("a", "text", given))


def test_tables_by_name_and_found(tables_folder: Path, tmp_path: Path) -> None:
    task = TablesTask(source=str(tables_folder), n_contexts=2)
    config = ContextConfig(seed=0, test_share=0.3, tables=task)
    found = asked(
        config,
        "tables",
        tmp_path / "work",
        Inquiry("a", "what is of 1953?"),
        Inquiry("b", "which year has the violin?", "csv/200-csv/7.csv"),
    )
    assert "1953" in found[0].texts[0].text and len(found[0].texts) == 2
    assert found[1].texts[0].id == "csv/200-csv/7.csv" == found[1].record["context_id"]
    assert found[1].record["input"].endswith("\n\nQuestion: which year has the violin?")
    with pytest.raises(InputError, match=r"--table 7\.csv: no such table in the corpus; "):
        asked(config, "tables", tmp_path / "work", Inquiry("a", "text", "7.csv"))


def test_the_corpus_is_read_once(qa_files: tuple[Path, Path], tmp_path: Path) -> None:
    task = QaTask(source=str(qa_files[0]), questions=str(qa_files[1]), n_contexts=3, legs=["bm25"])
    config = ContextConfig(seed=1, test_share=0.3, qa=task)
    steps: list[str] = []

    def ask(*texts: str) -> list[Asked]:
        inquiries = [Inquiry(text, text) for text in texts]
        return ask_corpus(
            config, "qa", inquiries, tmp_path / "work", None, lambda step, *_: steps.append(step)
        )

    first = ask("What did it cost in 7?")
    assert "qa: read documents" in steps
    steps.clear()
    assert ask("What did it cost in 7?") == first and "qa: read documents" not in steps
    # A changed corpus is read again.
    with qa_files[0].open("a") as file:
        file.write(json.dumps({"id": "new", "title": "The zeppelin", "text": "It is new."}) + "\n")
    assert "new" in [text.id for text in ask("Where is the zeppelin?")[0].texts]
    assert "qa: read documents" in steps


def test_instructions_have_no_documents_to_find(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ContextConfig(seed=0, test_share=0.3, qa=QaTask(source=str(path)))
    with pytest.raises(InputError, match="no documents to find; use `jora generate`"):
        asked(config, "qa", tmp_path / "work", Inquiry("a", "text"))
