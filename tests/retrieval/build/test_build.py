"""The whole build: contract of the files, determinism, guards, refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jora_core.base.errors import InputError
from jora_core.base.record_columns import EVIDENCE_RECORD_COLUMNS, RECORD_COLUMNS
from retrieval.build.build import build_record_files
from retrieval.build.inputs import input_digests
from retrieval.build.record_files import (
    RANKING_COLUMNS,
    read_rankings,
    read_records,
)
from retrieval.guards import splits
from retrieval.prompts import templates
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, TablesTask, ThreadsTask
from tests.retrieval.conftest import TOPICS, link, post


def file_metadata(path: Path) -> dict[str, str]:
    import pyarrow.parquet as pq

    return {key.decode(): value.decode() for key, value in pq.read_schema(path).metadata.items()}


def threads_config(source: Path, seed: int = 0, **fields: Any) -> ContextConfig:
    task = {"source": str(source), "legs": ["bm25", "recency"], "n_contexts": 4} | fields
    return ContextConfig(seed=seed, test_share=0.3, threads=ThreadsTask(**task))


def write_threads(path: Path, *threads: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"posts": posts}) + "\n" for posts in threads), encoding="utf-8")
    return path


def test_threads_follow_the_contract(threads_file: Path, tmp_path: Path) -> None:
    metrics = build_record_files(threads_config(threads_file), tmp_path / "out")
    records = read_records(tmp_path / "out" / "records.parquet")
    rankings = read_rankings(tmp_path / "out" / "rankings.parquet")
    assert [r["id"] for r in records] == [r["id"] for r in rankings]
    assert len({r["id"] for r in records}) == len(records) == metrics["records"]
    assert {r["split"] for r in records} == {"train", "test"}
    lost = 0
    for record, ranking in zip(records, rankings, strict=True):
        assert record["instruction"] == templates.THREADS_INSTRUCTION
        *lines, comment = record["input"].split("\n\n")
        assert len(lines) == len(record["context_ids"]) == len(record["choices"]) <= 4
        assert comment.startswith("Comment by ")
        assert ">>" not in record["input"]
        authors = dict(zip(ranking["candidate_ids"], ranking["candidate_authors"], strict=True))
        for n, (line, key, choice) in enumerate(
            zip(lines, record["context_ids"], record["choices"], strict=True), 1
        ):
            assert line.endswith(f"\n#{n} {authors[key]}")
            assert choice == f"#{n} {authors[key]}"
        assert record["context_ids"] == sorted(record["context_ids"], key=int)
        gold = [
            c
            for c, key in zip(record["choices"], record["context_ids"], strict=True)
            if key in ranking["gold_ids"]
        ]
        assert sorted(record["gold"]) == sorted(gold)
        assert record["output"] == (record["gold"][0] if gold else "")
        assert record["oracle_in_context"] == bool(gold)
        assert record["oracle_ids"] == ranking["gold_ids"]
        # Nothing later than the comment is ever a candidate.
        assert all(int(key) < int(record["id"].split(":")[2]) for key in ranking["candidate_ids"])
        if record["split"] == "test":
            assert set(record["context_ids"]) == set(ranking["fused"][:4])
            lost += not gold
        else:
            assert gold
        assert ranking["opening_id"] == ranking["candidate_ids"][0] == record["context_id"]
        assert sorted(ranking["bm25"]) == sorted(ranking["candidate_ids"])
        assert ranking["recency"] == ranking["candidate_ids"][::-1]
        assert ranking["dense"] == ranking["mention"] == []
    assert lost > 0, "the retriever should miss sometimes, or the test proves nothing"
    task = metrics["tasks"]["threads"]
    share = sum(r["oracle_in_context"] for r in records if r["split"] == "test") / task["records"]["test"]
    assert task["oracle_in_context"] == {"train": 1.0, "test": pytest.approx(share, abs=1e-6)}
    fused = task["retrieval"]["test"]["fused"]
    assert fused["n"] == task["records"]["test"]
    assert fused["recall@1"] <= fused["recall@3"] <= fused["recall@20"] == 1.0


def test_columns_and_metadata(threads_file: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    config = threads_config(threads_file)
    build_record_files(config, tmp_path)
    assert pq.read_schema(tmp_path / "records.parquet").names == [*RECORD_COLUMNS, *EVIDENCE_RECORD_COLUMNS]
    assert pq.read_schema(tmp_path / "rankings.parquet").names == list(RANKING_COLUMNS)
    metadata = file_metadata(tmp_path / "records.parquet")
    assert json.loads(metadata["inputs"]) == input_digests(config)
    assert metadata["seed"] == "0"
    assert "source" not in json.loads(metadata["config"])["threads"]
    assert str(tmp_path) not in json.dumps(metadata)


def full_config(root: Path, embedder: Path) -> ContextConfig:
    return ContextConfig(
        seed=1,
        test_share=0.3,
        embedder=str(embedder),
        tables=TablesTask(source=str(root / "tables"), n_contexts=3, oracle_share=0.5),
        threads=ThreadsTask(
            source=str(root / "threads.ndjson"), n_contexts=3, legs=["mention", "recency", "dense", "bm25"]
        ),
        qa=QaTask(
            source=str(root / "documents.jsonl"), questions=str(root / "questions.jsonl"), oracle_share=0.7
        ),
    )


@pytest.mark.usefixtures("threads_file", "tables_folder", "qa_files")
def test_the_same_corpus_gives_the_same_bytes_anywhere(tmp_path: Path, tiny_embedder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build_record_files(
        full_config(tmp_path, tiny_embedder), tmp_path / "one", lambda *step: told.append(step)
    )
    moved = tmp_path / "elsewhere" / "deeper"
    moved.mkdir(parents=True)
    for name in ("tables", "threads.ndjson", "documents.jsonl", "questions.jsonl"):
        source = tmp_path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, moved / name)
        os.utime(moved / name, (0, 0))
    build_record_files(full_config(moved, tiny_embedder), tmp_path / "two")
    for name in ("records.parquet", "rankings.parquet", "links.parquet", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert {stage.split(":")[0] for stage, _, _ in told} == {
        "digest inputs",
        "tables",
        "threads",
        "qa",
        "merge shards",
    }
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "links.parquet",
        "metrics.json",
        "rankings.parquet",
        "records.parquet",
    ]


@pytest.mark.usefixtures("threads_file", "tables_folder", "qa_files")
def test_records_of_a_task_do_not_depend_on_the_other_tasks(tmp_path: Path, tiny_embedder: Path) -> None:
    """The keys of the stages rest on this: the settings and inputs of one task give its rows."""
    config = full_config(tmp_path, tiny_embedder)
    together = build_record_files(config, tmp_path / "together")["digests"]
    for task in config.tasks:
        alone = build_record_files(config.of_task(task), tmp_path / task)["digests"]
        assert alone == {file: {task: found[task]} for file, found in together.items()}
        assert len({*alone["records"][task].values()}) == 2
    append_thread(tmp_path / "threads.ndjson")
    later = build_record_files(config, tmp_path / "later")["digests"]
    same = {task: later["records"][task] == together["records"][task] for task in config.tasks}
    assert same == {"tables": True, "threads": False, "qa": True}


def append_thread(path: Path) -> None:
    """Add a copy of the first thread under other ids and with other words."""
    first = json.loads(path.read_text().splitlines()[0])
    for item in first["posts"]:
        item["no"] += 10**6
        item["resto"] += 10**6 if item["resto"] else 0
        item["com"] = item.get("com", "").replace("#p", "#p100").replace("&gt;&gt;", "&gt;&gt;100") + " anew"
    with path.open("a") as file:
        file.write(json.dumps(first) + "\n")


@pytest.mark.usefixtures("threads_file", "tables_folder", "qa_files")
def test_tables_and_documents_follow_the_contract(tmp_path: Path, tiny_embedder: Path) -> None:
    metrics = build_record_files(full_config(tmp_path, tiny_embedder), tmp_path / "out")
    records = read_records(tmp_path / "out" / "records.parquet")
    split = {r["context_id"]: r["split"] for r in records}
    by_context: dict[str, set[str]] = {}
    for record in (r for r in records if r["task"] == "tables"):
        prefix, question = record["input"].rsplit("\n\n", 1)
        assert question.startswith("Question: ")
        assert [block.split("\n")[0] for block in prefix.split("\n\n")] == ["Thing | Year"] * 3
        by_context.setdefault(record["context_id"], set()).add(prefix)
        assert {split[key] for key in record["context_ids"]} == {record["split"]}
        assert record["output"] == ", ".join(record["gold"])
    assert all(len(prefixes) == 1 for prefixes in by_context.values()), (
        "questions of a table share their prefix"
    )
    for record in (r for r in records if r["task"] == "qa"):
        lines = record["input"].split("\n\n")[0].split("\n")
        assert [line[:4] for line in lines] == ["[1] ", "[2] ", "[3] "]
        assert record["oracle_in_context"] == (record["context_id"] in record["context_ids"])
        if record["split"] == "train":
            assert {split[key] for key in record["context_ids"]} == {"train"}
    shares = metrics["tasks"]["qa"]["oracle_in_context"]
    assert 0.4 < shares["train"] < 0.95
    assert metrics["tasks"]["tables"]["oracle_in_context"]["test"] == 1.0
    assert 0 < metrics["tasks"]["tables"]["oracle_in_context"]["train"] < 1
    rankings = read_rankings(tmp_path / "out" / "rankings.parquet", "qa", "test")
    tests = {r["id"]: r for r in records if r["task"] == "qa" and r["split"] == "test"}
    for ranking in rankings:
        assert set(tests[ranking["id"]]["context_ids"]) == set(ranking["fused"][:3])


def test_both_bm25_backends_give_the_same_rankings(threads_file: Path, tmp_path: Path) -> None:
    config = threads_config(threads_file)
    build_record_files(config, tmp_path / "csr")
    build_record_files(config.model_copy(update={"bm25_backend": "rank_bm25"}), tmp_path / "library")
    rows = [read_rankings(tmp_path / name / "rankings.parquet") for name in ("csr", "library")]
    assert rows[0] == rows[1]


def test_duplicates_across_splits_are_dropped(tmp_path: Path) -> None:
    def thread(start: int) -> list[dict[str, Any]]:
        same = [
            post(start, "The same opening post."),
            post(start + 1, link(start) + "The same reply!", "Lena", start),
        ]
        own = f"My own words about the {TOPICS[start % 9]} {start}."
        return [*same, post(start + 2, link(start + 1) + own, "Oskar", start)]

    source = write_threads(tmp_path / "t.ndjson", *(thread(10 * i + 10) for i in range(20)))
    metrics = build_record_files(threads_config(source), tmp_path / "out")["tasks"]["threads"]
    records = read_records(tmp_path / "out" / "records.parquet")
    train = [r for r in records if r["split"] == "train"]
    assert metrics["dropped"]["duplicate_of_test_record"] == metrics["contexts"]["train"] == len(train)
    assert not any("The same reply" in r["input"].split("\n\n")[-1] for r in train)


def test_dropped_comments_are_counted(tmp_path: Path) -> None:
    posts = [
        post(1, "Opening."),
        post(2, link(1), "Lena", 1),
        post(3, link(3) + link(4) + "self", "Oskar", 1),
    ]
    posts += [post(4, link(2) + "to the empty one", "Priya", 1), post(5, "no link", "Wren", 1)]
    other = [post(20, "Other opening."), post(21, link(20) + "other reply", "Lena", 20)]
    source = write_threads(tmp_path / "t.ndjson", posts, other)
    config = threads_config(source).model_copy(update={"test_share": 0.0})
    metrics = build_record_files(config, tmp_path / "out")["tasks"]["threads"]
    assert metrics["dropped"] == {
        "comment_without_earlier_parent": 1,
        "comment_without_text": 1,
        "link_to_same_or_later_post": 2,
    }
    records = read_records(tmp_path / "out" / "records.parquet")
    assert [r["id"] for r in records] == ["threads:1:4", "threads:20:21"]
    assert "(no text)\n#2 Lena" in records[0]["input"]


def test_a_parent_outside_the_window_is_dropped_in_training_and_lost_in_test(tmp_path: Path) -> None:
    def thread(start: int) -> list[dict[str, Any]]:
        filler = [post(start + i, f"filler {start} {i}", "Lena", start) for i in range(1, 5)]
        return [
            post(start, f"Opening {start}."),
            *filler,
            post(start + 5, link(start) + f"late {start}", "Wren", start),
        ]

    source = write_threads(tmp_path / "t.ndjson", *(thread(100 * i + 100) for i in range(20)))
    near = write_threads(
        tmp_path / "n.ndjson", [post(9000, "Opening."), post(9001, link(9000) + "near", "Lena", 9000)]
    )
    config = threads_config(near, test_source=str(source), window=3)
    metrics = build_record_files(config, tmp_path / "out")["tasks"]["threads"]
    assert metrics["records"] == {"train": 1, "test": 20}
    assert metrics["oracle_in_context"]["test"] == 0.0
    rows = read_rankings(tmp_path / "out" / "rankings.parquet", split="test")
    assert all(r["gold_ids"] == [r["opening_id"]] and r["opening_id"] not in r["candidate_ids"] for r in rows)
    with pytest.raises(InputError, match=r"no post replies to an earlier post.*\(left out: 20 [a-z ]+\)"):
        build_record_files(
            threads_config(source, window=3).model_copy(update={"test_share": 0.0}), tmp_path / "none"
        )


def test_caps_keep_whole_training_contexts_and_spread_the_test(threads_file: Path, tmp_path: Path) -> None:
    config = threads_config(threads_file, max_records=20, max_test_records=7)
    metrics = build_record_files(config, tmp_path / "out")["tasks"]["threads"]
    assert metrics["records"] == {"train": 20, "test": 7}
    assert metrics["contexts"]["train"] <= 5
    assert metrics["contexts"]["test"] >= 3
    assert metrics["dropped"]["over_max_train_records"] > 0


def test_splits_are_stable_as_contexts_arrive() -> None:
    shares = [splits.split_of(7, f"thread {i}", 0.2) for i in range(5000)]
    assert 0.18 < shares.count("test") / 5000 < 0.22
    assert shares[:100] == [splits.split_of(7, f"thread {i}", 0.2) for i in range(100)]


def test_config_refuses_unknown_keys_and_no_task() -> None:
    with pytest.raises(ValidationError, match="no task"):
        ContextConfig()
    with pytest.raises(ValidationError, match="extra_forbidden"):
        ThreadsTask(source="x", sorce="y")  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        ThreadsTask(source="x", legs=["bm26"])  # type: ignore[list-item]
    for model in (ContextConfig, TablesTask, ThreadsTask, QaTask):
        assert all(field.title and field.description for field in model.model_fields.values())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"threads\.source: .*does not exist"),
        ("", r"threads\.source: .*holds no thread"),
        ("{}\n", r"t\.ndjson:1: thread without posts"),
        ('{"posts": [{"no": 1, "com": "x"}]}\n', "no post replies|none of the 1 threads"),
    ],
)
def test_bad_threads_leave_nothing_behind(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "t.ndjson").write_text(content)
    with pytest.raises(InputError, match=said):
        build_record_files(threads_config(tmp_path / "t.ndjson"), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_sources_may_be_globs_and_variables(
    threads_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS", str(threads_file.parent))
    assert list(input_digests(threads_config(Path("$CORPUS/*.ndjson")))) == ["threads/threads.ndjson"]
    with pytest.raises(InputError, match="environment variable NOT_SET_ANYWHERE"):
        input_digests(threads_config(Path("$NOT_SET_ANYWHERE/*.ndjson")))
    with pytest.raises(InputError, match="no file found"):
        input_digests(threads_config(tmp_path / "*.nothing"))


def test_dense_without_an_embedder_is_refused(threads_file: Path, tmp_path: Path) -> None:
    config = threads_config(threads_file, legs=["bm25", "dense"])
    with pytest.raises(
        InputError, match=r"threads\.legs has the leg 'dense' but no embedder .*data/tiny-embedder"
    ):
        build_record_files(config, tmp_path / "out")
    for wrong in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"embedder: .*(modules\.json|does not exist)"):
            build_record_files(config.model_copy(update={"embedder": str(wrong)}), tmp_path / "out")


def test_unwritable_output_is_one_line(threads_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        build_record_files(threads_config(threads_file), tmp_path / "file" / "out")
    if Path("/dev/full").exists():
        (tmp_path / "full").mkdir()
        with pytest.raises(InputError, match="cannot be written"):
            build_record_files(threads_config(threads_file), Path("/proc/none"))


def test_importing_the_room_stays_light() -> None:
    code = (
        "import sys, retrieval.build.build, retrieval.evaluation.answer_scores;"
        "import retrieval.settings.context, retrieval.corpus.source_files;"
        "heavy = 'jax torch faiss transformers sentence_transformers prefect pandas scipy pyarrow rank_bm25';"
        "bad = set(heavy.split()) & set(sys.modules); print(sorted(bad)); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
