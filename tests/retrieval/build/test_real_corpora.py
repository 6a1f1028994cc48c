"""The readers over data that nobody here wrote: all of WikiTableQuestions' training set, the IRC dev logs."""

from __future__ import annotations

from pathlib import Path

from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_rankings, read_records
from retrieval.evaluation.answer_scores import directionality, tables_scores
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import TablesTask, ThreadsTask


def test_all_of_wikitables_becomes_records_and_gold_scores_full(shared: Path, tmp_path: Path) -> None:
    config = ContextConfig(test_share=0.0, tables=TablesTask(source=str(shared / "data" / "wikitables")))
    metrics = build_record_files(config, tmp_path)
    task = metrics["tasks"]["tables"]
    assert task["read"]["questions"] == task["records"]["train"] == metrics["records"] == 14152
    assert (task["read"]["tables"], task["dropped"]) == (1679, {})
    records = read_records(tmp_path / "records.parquet")
    for answers in (
        {r["id"]: r["output"] for r in records},  # joined by commas, as a model would write them
        {r["id"]: r["gold"] for r in records},
    ):
        assert tables_scores(answers, records, resamples=10)["denotation_accuracy"]["value"] == 1.0  # type: ignore[arg-type]


def test_irc_dev_links_and_recall(shared: Path, tmp_path: Path) -> None:
    logs = sorted((shared / "data" / "irc" / "train").glob("*.train-a.ascii.txt"))[:1]
    task = ThreadsTask(
        source=str(logs[0]),
        test_source=str(shared / "data" / "irc" / "dev"),
        format="irc",
        legs=["bm25", "recency", "mention"],
        max_records=10,
    )
    report = build_record_files(ContextConfig(threads=task), tmp_path)["tasks"]["threads"]
    assert report["contexts"]["test"] == 10
    assert 1900 < report["records"]["test"] < 2400
    legs = report["retrieval"]["test"]
    assert legs["fused"]["recall@5"] > 0.8
    assert legs["fused"]["recall@10"] > 0.9
    assert 0.1 < legs["bm25"]["recall@1"] < 0.3
    scores = directionality({}, read_rankings(tmp_path / "rankings.parquet", "threads", "test"))["systems"]
    assert 0.25 < scores["previous_post"]["reply@1"]["value"] < 0.4
