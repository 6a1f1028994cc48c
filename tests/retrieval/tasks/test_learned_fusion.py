"""Thread records with learned fusion: columns, scores, who ranks whom, the same bytes, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from jora_core.base.errors import InputError
from jora_core.base.record_columns import EVIDENCE_RECORD_COLUMNS, RECORD_COLUMNS
from retrieval.build.ask import ask_corpus
from retrieval.build.build import build_record_files
from retrieval.build.record_files import RANKING_COLUMNS, read_rankings, read_records
from retrieval.build.shards import prepare
from retrieval.corpus.types import Post
from retrieval.evaluation.answer_scores import BASELINES, baseline_predictions
from retrieval.search.learned.reply_ranker import UNSEEN, WEIGHTS
from retrieval.search.legs.leg import LegQuery
from retrieval.search.legs.rank_legs import rank_legs
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, ThreadsTask
from retrieval.tasks.asking import Inquiry
from retrieval.tasks.threads.learned_fusion import FOLDER, ranked
from retrieval.tasks.threads.task import ThreadsWork, open_work

SAMPLE = Path(__file__).resolve().parents[3] / "data" / "sample" / "threads.ndjson"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first threads of the sample."""
    path = tmp_path_factory.mktemp("threads") / "threads.ndjson"
    lines = SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:24]), encoding="utf-8")
    return path


def config_of(source: Path, fusion: str = "learned", **extra: Any) -> ContextConfig:
    task = {"source": str(source), "format": "4chan", "n_contexts": 4, "legs": ["bm25", "recency"]}
    return ContextConfig(threads=ThreadsTask.model_validate({**task, "fusion": fusion, **extra}), seed=3)


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("built")
    return folder, build_record_files(config_of(source, abstain=True), folder)


def test_the_learned_ranking_chooses_the_contexts(built: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = built
    rankings = {row["id"]: row for row in read_rankings(folder / "rankings.parquet")}
    records = read_records(folder / "records.parquet", split="test")
    assert len(records) > 30
    for record in records:
        row = rankings[record["id"]]
        assert set(record["context_ids"]) == set(row["learned"][: len(record["context_ids"])])
        scores = dict(zip(row["candidate_ids"], row["learned_scores"], strict=False))
        assert len(row["learned_scores"]) == len(row["candidate_ids"]) + 1
        assert sum(np.exp(row["learned_scores"])) == pytest.approx(1, abs=1e-3)
        ranked = [scores[post] for post in row["learned"]]
        assert ranked == sorted(ranked, reverse=True)
        # The last choice says that no post of the prompt is answered.
        *shown, none = record["choice_scores"]
        assert shown == [scores[post] for post in record["context_ids"]]
        assert np.exp(none) + np.exp(shown).sum() == pytest.approx(1, abs=1e-3)
    measures = metrics["tasks"]["threads"]["learned_fusion"]
    assert measures["threads"] + len({record["context_id"] for record in records}) == 24
    assert measures["messages"] > 200 and measures["test"]["messages"] >= len(records)
    assert {"distance", "mentions", "overlap", "bm25", "form", "words"} <= set(measures["without"])
    found = metrics["tasks"]["threads"]["retrieval"]["test"]
    assert found["learned"]["recall@1"] > found["bm25"]["recall@1"]


def test_learned_and_fused_become_baselines(built: tuple[Path, dict[str, Any]], source: Path) -> None:
    rows = read_rankings(built[0] / "rankings.parquet", "threads", "test")
    found = baseline_predictions(rows)
    assert list(found) == [name for name in BASELINES if name not in ("dense", "reranked")]
    assert all(found["learned"][row["id"]].post_id == row["learned"][0] for row in rows)
    assert "learned" not in baseline_predictions([{**row, "learned": []} for row in rows])
    assert list(baseline_predictions(rows, names=["bm25", "dense", "random"])) == ["random", "bm25"]


def test_shards_and_a_second_build_give_the_same_bytes(
    built: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    config = config_of(source, abstain=True).model_copy(update={"shard_records": 37})
    build_record_files(config, tmp_path)
    for name in ("records.parquet", "rankings.parquet"):
        assert (tmp_path / name).read_bytes() == (built[0] / name).read_bytes()


def test_the_prepared_ranker_is_read_with_its_folds_and_its_damage_noticed(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(source)
    prepared = prepare(config, tmp_path, lambda step, done, total: None)
    folder = tmp_path / "threads" / FOLDER
    folds = np.load(folder / "folds.npy")
    # Held-out threads are in no fold; the others are spread over five.
    assert (folds == UNSEEN).sum() > 2 and np.ptp(np.bincount(folds[folds >= 0])) <= 1
    path = folder / WEIGHTS
    weights = path.read_bytes()
    path.write_bytes(weights[:-4] + b"\0\0\0\1")
    assert prepare(config, tmp_path, lambda step, done, total: None) == prepared
    assert path.read_bytes() == weights and "ranker.safetensors: damaged" in caplog.text


def test_a_new_post_is_ranked_as_one_of_the_corpus(source: Path, tmp_path: Path) -> None:
    config = config_of(source)
    prepare(config, tmp_path, lambda step, done, total: None)
    work = open_work(config, tmp_path / "threads")
    fusion = work.learned
    assert fusion is not None
    rows = [row for row in work.replies if fusion.folds[row.thread] == UNSEEN]
    assert len(rows) > 30
    for row in rows[::3]:
        posts = work.threads.thread(row.thread).posts[: row.place + 1]
        start = work.threads.rows.value("start", row.thread)
        words = work.bm25.tokenizer(posts[-1].text)
        scores = {"bm25": work.bm25.window_scores(words, start + row.low, start + row.place)}
        # The compiled scores of the fitting are those of the index.
        assert fusion.source.leg_scores(0, [row], None)["bm25"].tolist() == scores["bm25"].tolist()
        legs = rank_legs(["bm25"], LegQuery(posts[-1], posts[row.low : -1], row.low, scores))
        new = fusion.log_probabilities_of_new(posts, row.low, legs)
        assert new.tolist() == fusion.log_probabilities(row, legs).tolist()
    # `ask` puts the post at the end of its thread.
    thread = work.threads.thread(rows[0].thread)
    inquiry = Inquiry("a", "That pump works again, thanks.", thread.id, thread.posts[0].author)
    (asked,) = ask_corpus(config, "threads", [inquiry], tmp_path, None, lambda *_: None)
    posts = (*thread.posts, Post("new post", inquiry.author, inquiry.text))
    scores = {"bm25": work.bm25.window_scores(work.bm25.tokenizer(inquiry.text), *_places(work, thread.id))}
    query = LegQuery(posts[-1], posts[:-1], 0, scores)
    expected = ranked(fusion.log_probabilities_of_new(posts, 0, rank_legs(["bm25"], query)))
    shown = sorted(asked.texts, key=lambda text: text.rank)
    assert [text.id for text in shown] == [posts[place].id for place in expected[:4].tolist()]


def _places(work: ThreadsWork, name: str) -> tuple[int, int]:
    """Where the posts of a thread begin and end among all posts."""
    row = next(row for row in work.threads.rows if row.id == name)
    return row.start, row.start + row.n


def test_without_learned_fusion_the_columns_stay(source: Path, tmp_path: Path) -> None:
    build_record_files(config_of(source, "rrf", max_records=30), tmp_path)
    assert pq.read_schema(tmp_path / "records.parquet").names == [*RECORD_COLUMNS, *EVIDENCE_RECORD_COLUMNS]
    assert pq.read_schema(tmp_path / "rankings.parquet").names == list(RANKING_COLUMNS)


def test_too_few_threads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "threads.ndjson"
    path.write_text(
        "".join(SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8"
    )
    with pytest.raises(
        InputError, match=r"needs at least 5 training threads and 100 replies .* found \d and"
    ):
        build_record_files(config_of(path), tmp_path / "out")


def test_other_tasks_and_the_other_backend_refuse_it(source: Path) -> None:
    with pytest.raises(ValidationError, match="Input should be 'rrf' or 'weighted'"):
        QaTask.model_validate({"source": "x", "fusion": "learned"})
    task = ThreadsTask(source=str(source), legs=["bm25"], fusion="learned")
    with pytest.raises(ValidationError, match="bm25_backend is rank_bm25: set it to csr"):
        ContextConfig(threads=task, bm25_backend="rank_bm25")
