"""Guards against leakage: near-duplicates, splits by time, and leaks planted into whole builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import guards
from retrieval.build import build_context
from retrieval.config import ContextConfig, ThreadsTask
from retrieval.errors import InputError
from retrieval.near_duplicates import NearDuplicates, bands_for, shingles, similarity
from retrieval.records import read_records

from .conftest import TOPICS, link, post

Write = Callable[[str, str], Path]
WORDS = [f"{a}{b}" for a in TOPICS for b in TOPICS]


def test_shingles_are_runs_of_three_words() -> None:
    assert shingles("A, b! C d") == {"a b c", "b c d"}
    assert shingles("One, TWO") == {"one two"}
    assert shingles("…!") == frozenset()
    assert similarity(shingles("a b c d"), shingles("a b c e")) == pytest.approx(1 / 3)
    assert similarity(frozenset(), frozenset()) == 0.0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([0.5, 0.8, 0.95]))
def test_near_duplicates_are_those_that_every_pair_compared_finds(
    data: st.DataObject, threshold: float
) -> None:
    words = st.lists(st.sampled_from(WORDS), max_size=20)
    held_out = [" ".join(w) for w in data.draw(st.lists(words, max_size=8))]
    texts = [" ".join(w) for w in data.draw(st.lists(words, max_size=4))]
    for text in held_out:  # copies with a word changed, added, or a sentence put before
        cut = data.draw(st.integers(0, 20))
        texts += [text, f"{text} {WORDS[cut]}", " ".join(text.split()[:cut]), f"{WORDS[cut]} {text}"]
    found = list(NearDuplicates(held_out, held_out.__getitem__, threshold).matches(texts))
    for text, place in zip(texts, found, strict=True):
        scores = [similarity(shingles(text), shingles(other)) for other in held_out]
        best = max(scores, default=0.0)
        assert place == (scores.index(best) if best >= threshold else -1)


def test_bands_miss_next_to_nothing() -> None:
    for threshold in (0.3, 0.5, 0.8, 0.9, 1.0):
        bands = bands_for(threshold)
        assert (1 - threshold ** (128 // bands)) ** bands <= 1e-3


def test_splits_by_time_put_the_newest_last() -> None:
    times: dict[str, float | None] = {f"c{i}": float(i % 8) for i in range(40)} | {"none": None}
    split = guards.splits_by_time(times, 0.25, "qa.split")
    assert {c for c, s in split.items() if s == "test"} == {c for c, t in times.items() if t in (6.0, 7.0)}
    assert split["none"] == "train"
    assert set(guards.splits_by_time(times, 0.0, "qa.split").values()) == {"train"}
    with pytest.raises(InputError, match=r"qa\.split is time, but none of the 1 contexts has a time"):
        guards.splits_by_time({"a": None}, 0.2, "qa.split")
    with pytest.raises(InputError, match="of the same moment as the oldest"):
        guards.splits_by_time({"a": 1.0, "b": 1.0, "c": 1.0}, 0.4, "qa.split")


def test_near_held_out_leaves_the_test_side_alone() -> None:
    one = " ".join(WORDS[:30])
    texts = [one, f"{one} more", "else entirely different words", one]
    assert guards.near_held_out(texts, ["test", "train", "", "test"], 0.8) == [False, True, False, False]
    assert guards.near_held_out(texts, ["test", "train", "", "test"], "off") == [False] * 4
    assert guards.near_held_out(texts, ["train"] * 4, 0.8) == [False] * 4


def threads_config(source: Path, **fields: Any) -> ContextConfig:
    top = {key: fields.pop(key) for key in ("near_duplicates", "test_share") if key in fields}
    task = {"source": str(source), "legs": ["bm25", "recency"], "n_contexts": 4} | fields
    return ContextConfig(**({"test_share": 0.3} | top), threads=ThreadsTask(**task))


def write_threads(write: Write, name: str, *threads: list[dict[str, Any]]) -> Path:
    return write(name, "".join(json.dumps({"posts": posts}) + "\n" for posts in threads))


def talk(start: int, opening: str, reply: str) -> list[dict[str, Any]]:
    return [post(start, opening), post(start + 1, link(start) + reply, "Lena", start)]


def test_a_planted_near_duplicate_across_splits_is_caught(write: Write, tmp_path: Path) -> None:
    opening = "Does anybody here still know where the old harbour kettle of my aunt went last winter?"
    reply = "It went to the violin shop beside the orchard, and they sold it to a sourdough baker in May."
    train = write_threads(
        write,
        "train.ndjson",
        talk(10, opening, reply + " Sad."),
        talk(20, "Good morning.", "Good evening, all."),
    )
    test = write_threads(write, "test.ndjson", talk(30, opening, reply))
    metrics = build_context(threads_config(train, test_source=str(test)), tmp_path / "out")
    dropped = metrics["tasks"]["threads"]["dropped"]
    assert dropped == {"near_duplicate_of_test_record": 1}
    assert [r["id"] for r in read_records(tmp_path / "out" / "records.parquet", split="train")] == [
        "threads:20:21"
    ]
    config = threads_config(train, test_source=str(test), near_duplicates="off")
    assert build_context(config, tmp_path / "off")["tasks"]["threads"]["dropped"] == {}


def test_threads_are_split_by_time(write: Write, tmp_path: Path) -> None:
    # Numbers do not grow with time here: only the times can have decided.
    threads = []
    for i in range(10):
        posts = talk(100 * i + 100, f"Opening about the {TOPICS[i % 9]}.", f"Reply {i} about it.")
        threads.append([p | {"time": 1000 - i} for p in posts])
    source = write_threads(write, "t.ndjson", *threads)
    config = threads_config(source, split="time")
    build_context(config, tmp_path / "out")
    records = read_records(tmp_path / "out" / "records.parquet")
    assert {r["context_id"] for r in records if r["split"] == "test"} == {"100", "200", "300"}


def test_off_may_be_yaml_false() -> None:
    config = ContextConfig.model_validate({"near_duplicates": False, "threads": {"source": "x"}})
    assert config.near_duplicates == "off"
