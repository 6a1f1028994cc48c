"""Prompts of the posts directly before a comment: starts, shared beginnings, labels, drops and budgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_rankings, read_records
from retrieval.prompts import templates
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.threads.window import window_start, window_stride, within_budget
from tests.retrieval.conftest import NAMES, TOPICS, link, post

Write = Callable[[str, str], Path]
Built = tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, Any]]]

POSTS, N, STRIDE = 40, 10, 5
TRAIN, TEST = 1000, 5000
#: Lengths of the texts, in words, are not all the same, so that a budget cuts at uneven places.
WORDS = [3 + (7 * i) % 9 for i in range(POSTS)]


def parents(place: int) -> list[int]:
    """What a post answers: near posts and far ones, some of them two posts, one of which is the opening."""
    if place == 0:
        return []
    near = max(0, place - 1 - (place * 7) % 13)
    return sorted({0, near}) if place % 6 == 0 else [near]


def start_of(place: int) -> int:
    """The first post in the window of ten: the opening up to place 10, then five further every five posts."""
    return 5 * ((place - 6) // 5) if place > N else 0


def chat(first: int, texts: Callable[[int], str]) -> str:
    """A thread of forty posts, whose numbers follow one another."""
    posts = [
        post(
            first + i,
            "".join(link(first + parent) for parent in parents(i)) + texts(i),
            NAMES[(i + first) % 6],
            first if i else 0,
        )
        for i in range(POSTS)
    ]
    return json.dumps({"posts": posts}) + "\n"


def said(first: int) -> Callable[[int], str]:
    return lambda i: " ".join(f"{TOPICS[(i + j) % 9]}{first + 50 * i + j}" for j in range(WORDS[i]))


@pytest.fixture
def build(write: Write, tmp_path: Path) -> Callable[..., Built]:
    """Builds one training thread and one held-out one; returns records, the task's metrics and rankings."""
    train, test = (
        write("train.ndjson", chat(TRAIN, said(TRAIN))),
        write("test.ndjson", chat(TEST, said(TEST))),
    )
    runs: Iterator[int] = iter(range(100))

    def run(**fields: Any) -> Built:
        top = {key: fields.pop(key) for key in ("shard_records", "workers") if key in fields}
        given = {"contexts": "window", "n_contexts": N, "window": 20, "legs": ["bm25", "recency"]} | fields
        task = ThreadsTask(source=str(train), test_source=str(test), **given)
        out = tmp_path / f"out{next(runs)}"
        metrics = build_record_files(ContextConfig(threads=task, **top), out)["tasks"]["threads"]
        return read_records(out / "records.parquet"), metrics, read_rankings(out / "rankings.parquet")

    return run


def place_of(record: dict[str, Any]) -> int:
    """Place of the record's comment in its thread."""
    return int(record["id"].rpartition(":")[2]) - (TRAIN if record["split"] == "train" else TEST)


def of(records: list[dict[str, Any]], split: str) -> dict[int, dict[str, Any]]:
    """Records of a split by the place of their comment."""
    return {place_of(record): record for record in records if record["split"] == split}


def posts_of(record: dict[str, Any]) -> str:
    """What stands before the comment, as a string that a longer prompt may begin with."""
    context, comment = record["input"].split("Comment by ")
    assert comment
    return context


def test_windows_start_at_multiples_of_the_stride() -> None:
    starts = [window_start(place, N) for place in range(41)]
    assert starts == [0] * 11 + [5] * 5 + [10] * 5 + [15] * 5 + [20] * 5 + [25] * 5 + [30] * 5
    for n in (1, 2, 3, 7, 10, 100):
        for place in range(250):
            start = window_start(place, n)
            held = place - start
            assert start % window_stride(n) == 0 and held <= n
            assert held == place if place <= n else held > n / 2
            assert window_start(place + 1, n) in (start, start + window_stride(n))


def test_prompts_hold_the_posts_before_the_comment(build: Callable[..., Built]) -> None:
    records, metrics, _ = build()
    held_out = of(records, "test")
    assert sorted(held_out) == list(range(1, POSTS)), "held-out comments stay, whatever is in their window"
    outside = 0
    for place, record in held_out.items():
        start = start_of(place)
        assert record["context_ids"] == [str(TEST + i) for i in range(start, place)]
        labels = [f"#{i - start + 1} {NAMES[(i + TEST) % 6]}" for i in range(start, place)]
        assert record["choices"] == labels
        texts = [f"{said(TEST)(i)}\n{label}" for i, label in zip(range(start, place), labels, strict=True)]
        assert posts_of(record) == "".join(f"{text}\n\n" for text in texts)
        right = [labels[parent - start] for parent in parents(place) if parent >= start]
        assert (record["gold"], record["oracle_in_context"]) == (right, bool(right))
        assert record["oracle_ids"] == [str(TEST + parent) for parent in parents(place)]
        outside += not right
    assert outside > 3, "parents that are all near prove nothing"
    assert metrics["oracle_in_context"]["test"] == round(1 - outside / len(held_out), 6)


def test_neighbours_share_the_beginning_of_their_prompts(build: Callable[..., Built]) -> None:
    records, _, _ = build()
    shared = 0
    for split in ("train", "test"):
        rows = [record for _, record in sorted(of(records, split).items())]
        assert len({record["context_id"] for record in rows}) == 1
        for one, other in pairwise(rows):
            if one["context_ids"][0] == other["context_ids"][0]:
                shared += 1
                assert other["context_ids"][: len(one["context_ids"])] == one["context_ids"]
                assert other["instruction"] == one["instruction"]
                assert other["input"].startswith(posts_of(one))
    # Seven starts in the held-out thread of 39 comments; fewer comments, and no more starts, in the other.
    assert 39 - 7 < shared <= 2 * (39 - 7)


def test_training_comments_without_a_parent_in_their_window(build: Callable[..., Built]) -> None:
    records, metrics, _ = build()
    teachable = [place for place in range(1, POSTS) if max(parents(place)) >= start_of(place)]
    partly = [place for place in teachable if min(parents(place)) < start_of(place)]
    assert partly and POSTS - 1 - len(teachable) > 3
    training = of(records, "train")
    assert sorted(training) == teachable
    assert metrics["dropped"] == {"training_parent_outside_window": POSTS - 1 - len(teachable)}
    for place in partly:
        assert len(training[place]["oracle_ids"]) == 2 and len(training[place]["gold"]) == 1
        assert training[place]["output"] == training[place]["gold"][0]
    # With abstain they are taught that none of the posts is the one, however far back it is.
    records, metrics, _ = build(abstain=True)
    training = of(records, "train")
    assert sorted(training) == list(range(1, POSTS)) and metrics["dropped"] == {}
    for place, record in training.items():
        assert record["oracle_in_context"] == (place in teachable)
        assert (record["output"] == templates.NO_POST) == (place not in teachable)
        assert record["choices"][-1] == templates.NO_POST
    assert metrics["notes"]["train"] == {"abstained": POSTS - 1 - len(teachable)}


@pytest.mark.parametrize("budget", [60, 30])
def test_a_budget_drops_the_oldest_posts_a_stride_at_a_time(build: Callable[..., Built], budget: int) -> None:
    records, metrics, _ = build(max_context_tokens=budget)
    costs = [words + 2 for words in WORDS]  # the label's two words
    expected: dict[int, int] = {}
    for place in range(1, POSTS):
        start = start_of(place)
        while sum(costs[start:place]) > budget and start + STRIDE < place:
            start += STRIDE
        while sum(costs[start:place]) > budget:
            start += 1
        expected[place] = start
    held_out, training = of(records, "test"), of(records, "train")
    assert sorted(held_out) == list(expected)
    for record in [*held_out.values(), *training.values()]:
        base = TEST if record["split"] == "test" else TRAIN
        place = place_of(record)
        assert record["context_ids"] == [str(base + i) for i in range(expected[place], place)]
    in_window = [place for place in expected if max(parents(place)) >= start_of(place)]
    left = [place for place in in_window if max(parents(place)) >= expected[place]]
    assert sorted(training) == left and len(left) < len(in_window)
    assert metrics["dropped"]["training_parent_over_budget"] == len(in_window) - len(left)
    shorter = [place for place, start in expected.items() if start > start_of(place)]
    assert metrics["notes"]["test"] == {"context_shortened": len(shorter)}
    assert metrics["notes"]["train"] == {"context_shortened": len({*shorter} & {*in_window})}
    abstaining, metrics, _ = build(max_context_tokens=budget, abstain=True)
    assert sorted(of(abstaining, "train")) == list(expected) and metrics["dropped"] == {}


def test_the_newest_post_stays_whatever_the_budget(build: Callable[..., Built]) -> None:
    assert [within_budget([4] * n, 20, 5) for n in (4, 5, 6, 10, 13)] == [4, 5, 1, 5, 3]
    assert within_budget([4] * 10, 0, 5) == 5
    records, metrics, _ = build(max_context_tokens=8)
    held_out = of(records, "test")
    assert {len(posts_of(record).split()) for record in held_out.values()} <= set(range(5, 9))
    assert all(record["context_ids"] == [str(TEST + place - 1)] for place, record in held_out.items())
    assert "context_over_budget" not in metrics["notes"]["test"]


def test_rankings_are_those_of_retrieved_contexts(build: Callable[..., Built]) -> None:
    _, window, ranked = build()
    _, retrieved, others = build(contexts="retrieved")
    by_id = {row["id"]: row for row in others}
    assert ranked == [by_id[row["id"]] for row in ranked]
    assert {len(row["candidate_ids"]) for row in ranked} == set(range(1, 21)), "more than a prompt holds"
    assert window["retrieval"]["test"] == retrieved["retrieval"]["test"]
    assert window["retrieval_groups"] == retrieved["retrieval_groups"]
    # However the work is cut: the same records, rankings and counts.
    whole = build(max_context_tokens=60)
    assert build(max_context_tokens=60, shard_records=7, workers=2) == whole


def test_what_a_window_cannot_do_is_refused() -> None:
    for wrong, line in (
        ({"oracle_share": 0.5, "abstain": True}, r"oracle_share below 1 can do nothing: leave it out, or"),
        ({"distractor_ranks": [2, 4]}, r"distractor_ranks can do nothing: leave it out, or set contexts to"),
        ({"window": 9}, r"window of at least n_contexts, got 9 and 10: raise window, or lower n_contexts"),
    ):
        with pytest.raises(ValidationError, match=line) as caught:
            ThreadsTask(source="t", contexts="window", **wrong)
        (error,) = caught.value.errors()
        assert "\n" not in error["msg"]
        ThreadsTask(source="t", **wrong)
    assert ThreadsTask(source="t", contexts="window", window=10).n_contexts == 10
