"""Numbers of the posts in a prompt that are the retriever's ranks, beside those in the order of time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_rankings, read_records
from retrieval.evaluation.answer_scores import prediction_from_answer
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from tests.retrieval.conftest import NAMES, TOPICS, link, post

POSTS, N = 20, 4


def chat(first: int) -> str:
    """A thread whose posts answer the third one before them, with words of it."""
    words = [f"{TOPICS[i % 9]}{first} said{i}" for i in range(POSTS)]
    posts = [post(first, words[0], NAMES[0], 0)]
    for i in range(1, POSTS):
        parent = max(0, i - 3)
        text = f"{link(first + parent)}{words[i]} {TOPICS[parent % 9]}{first}"
        posts.append(post(first + i, text, NAMES[i % 6], first))
    return json.dumps({"posts": posts}) + "\n"


@pytest.mark.parametrize("legs", [["bm25"], ["recency"]])
def test_posts_stand_in_time_order_and_are_numbered_by_rank(
    write: Callable[[str, str], Path], tmp_path: Path, legs: list[str]
) -> None:
    train, test = write("train.ndjson", chat(1000)), write("test.ndjson", chat(5000))
    built: dict[str, dict[str, dict[str, Any]]] = {}
    for numbering in ("time", "rank"):
        task = ThreadsTask.model_validate(
            {
                "source": str(train),
                "test_source": str(test),
                "legs": legs,
                "n_contexts": N,
                "numbering": numbering,
            }
        )
        build_record_files(ContextConfig(threads=task), tmp_path / numbering)
        built[numbering] = {row["id"]: row for row in read_records(tmp_path / numbering / "records.parquet")}
    rankings = {row["id"]: row for row in read_rankings(tmp_path / "rank" / "rankings.parquet")}
    assert built["time"].keys() == built["rank"].keys()
    moved = 0
    for name, by_rank in built["rank"].items():
        by_time, fused = built["time"][name], rankings[name]["fused"]
        assert by_rank["context_ids"] == sorted(by_rank["context_ids"], key=fused.index)
        assert by_time["context_ids"] == sorted(by_time["context_ids"], key=int)
        if by_rank["split"] == "test":
            assert by_rank["context_ids"] == fused[:N]
        moved += by_rank["context_ids"] != by_time["context_ids"]
        # The same posts in the same order, under other numbers.
        unlabelled = [
            [part.rpartition("\n")[0] for part in row["input"].split("\n\n")[:-1]]
            for row in (by_rank, by_time)
        ]
        assert unlabelled[0] == unlabelled[1]
        for row in (by_rank, by_time):
            named = {prediction_from_answer(choice, row).post_id: choice for choice in row["choices"]}
            assert list(named) == row["context_ids"]
            assert sorted(row["gold"]) == sorted(named[post] for post in row["oracle_ids"] if post in named)
            shown = [part.rpartition("\n")[2] for part in row["input"].split("\n\n")[:-1]]
            assert shown == [named[post] for post in sorted(row["context_ids"], key=int)]
    assert moved > len(built["rank"]) / 2
    assert any(row["gold"] for row in built["rank"].values())


def test_windows_have_no_ranks() -> None:
    with pytest.raises(ValidationError, match="numbering: rank can do nothing"):
        ThreadsTask.model_validate({"source": "x", "contexts": "window", "numbering": "rank"})
