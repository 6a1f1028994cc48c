"""Links of held-out threads: rules by hand and against slow ones, and the rows that a build writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_rankings
from retrieval.corpus.mapped_items import map_batches
from retrieval.corpus.types import Post, Tally
from retrieval.evaluation.answer_scores import Prediction, baseline_predictions
from retrieval.evaluation.measures.links import annotated_links
from retrieval.evaluation.threads.link_rows import LINK_COLUMNS, links_in
from retrieval.evaluation.threads.link_scores import link_scores
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.task_protocol import LINKS
from retrieval.tasks.threads.link_rules import RULES
from retrieval.tasks.threads.links import asked_messages, linked_threads, write_links
from retrieval.tasks.threads.store import ThreadStore, store_threads

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"


def slow_previous(posts: Sequence[Post], place: int) -> int:
    return place - 1 if place else 0


def slow_previous_other(posts: Sequence[Post], place: int) -> int:
    others = [p for p in range(place) if posts[p].author != posts[place].author]
    return others[-1] if others else slow_previous(posts, place)


def slow_addressed(posts: Sequence[Post], place: int) -> int:
    """The rule as docs/evaluation.md says it, with a look at all earlier posts."""
    author = posts[place].author.casefold()
    name = posts[place].text.split(" ")[0].rstrip(":,").casefold()
    of = {who: [p for p in range(place) if posts[p].author.casefold() == who] for who in (name, author)}
    if of[name] and name != author:
        return of[name][-1]
    return place - 1 if of[author] else place


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["Ann", "bob", "cy"]), st.sampled_from(["ann: a", "b", "CY, c", ""])))
)
def test_rules_against_slow_ones(said: list[tuple[str, str]]) -> None:
    posts = [Post(str(n), author, text) for n, (author, text) in enumerate(said)]
    slow = {
        "previous_post": slow_previous,
        "previous_other_author": slow_previous_other,
        "addressed_then_previous": slow_addressed,
    }
    assert slow.keys() == RULES.keys()
    for name, rule in RULES.items():
        assert rule(posts) == [slow[name](posts, place) for place in range(len(posts))], name


def log(folder: Path, name: str, lines: Sequence[str], links: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    said = [line if line.startswith("=") else f"[10:00] {line}" for line in lines]
    (folder / f"{name}.ascii.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
    (folder / f"{name}.annotation.txt").write_text("".join(f"{link} -\n" for link in links), encoding="utf-8")


def stored(folder: Path, source: Path, test: Path, format: str = "irc") -> ThreadStore:
    task = ThreadsTask(source=str(source), test_source=str(test), format=format, missing_parents="drop")
    (folder / "work").mkdir()
    return store_threads(ContextConfig(threads=task), task, folder / "work", Tally(), lambda *_: None)


def rows_of(folder: Path) -> list[dict]:
    return [row for batch in map_batches(folder / LINKS) for row in batch.to_pylist()]


def test_rows_of_a_log(tmp_path: Path) -> None:
    log(tmp_path / "train", "t", ["<ann> a", "<bob> b"], ["0 1"])
    lines = ["<ann> a", "<bob> b", "=== cy joined", "<cy> ann: c", "<ann> d", "<bob> e"]
    # Line 3 answers two and starts a conversation too, 4 answers the system's line, 1 is not annotated.
    log(tmp_path / "test", "x", lines, ["2 2", "0 3", "1 3", "3 3", "2 4", "4 5"])
    threads = stored(tmp_path, tmp_path / "train", tmp_path / "test")
    (number,) = linked_threads(threads, 100, 0)
    assert [(row.place, row.parents) for row in asked_messages(threads, number, 100)] == [
        (2, (0, 1)), (3, ()), (4, (3,))]  # fmt: skip
    write_links(threads, [number], {(number, 2): [1, 0], (number, 3): [3], (number, 4): [3]}, tmp_path)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == list(LINK_COLUMNS) and {row["context_id"] for row in rows} == {"x"}
    gold = annotated_links((tmp_path / "test" / "x.annotation.txt").read_text().splitlines())
    assert links_in(rows, "parents") == {"x": gold}
    shown = [
        (r["number"], r["post_id"], r["asked"], r["addressed_then_previous"], r["learned"]) for r in rows
    ]
    assert shown == [
        (0, "0", False, [], []),
        (1, "1", False, [], []),
        # A line of the system counts as a start.
        (2, "", False, [2], [2]),
        (3, "3", True, [0], [1, 0]),
        (4, "4", True, [3], [4]),
        (5, "5", True, [4], [4]),
    ]
    assert rows[3]["id"] == "threads:x:3" and rows[2]["id"] == ""
    write_links(threads, [number], None, tmp_path)
    assert all(row["learned"] == [] for row in rows_of(tmp_path))


def test_the_posts_say_what_is_annotated_elsewhere(tmp_path: Path) -> None:
    for split, opening in (("train", 10), ("test", 20)):
        link = f'<a href="#p{opening}" class="quotelink">&gt;&gt;{opening}</a><br>b'
        said = (("Ann", 0, "a"), ("Bob", opening, link), ("Cy", opening, "c"))
        posts = [
            {"no": opening + n, "resto": resto, "time": n + 1, "name": name, "com": text}
            for n, (name, resto, text) in enumerate(said)
        ]
        (tmp_path / f"{split}.ndjson").write_text(json.dumps({"posts": posts}) + "\n")
    threads = stored(tmp_path, tmp_path / "train.ndjson", tmp_path / "test.ndjson", "4chan")
    write_links(threads, linked_threads(threads, 100, 0), None, tmp_path)
    rows = rows_of(tmp_path)
    # Places, not ids. The opening post, and a post without a quotelink, start conversations.
    assert [(row["number"], row["parents"], row["asked"]) for row in rows] == [
        (0, [0], False), (1, [0], True), (2, [2], True)]  # fmt: skip


@pytest.mark.corpus
def test_the_development_logs_have_the_links_and_rules_of_the_page(tmp_path: Path, shared: Path) -> None:
    data = shared / "data" / "irc"
    log(tmp_path / "train", "t", ["<ann> a", "<bob> b"], ["0 1"])
    threads = stored(tmp_path, tmp_path / "train", data / "dev")
    write_links(threads, linked_threads(threads, 100, 0), None, tmp_path)
    rows = rows_of(tmp_path)
    files = {
        path.name.removesuffix(".annotation.txt"): path for path in (data / "dev").glob("*.annotation.txt")
    }
    gold = links_in(rows, "parents")
    assert gold == {name: annotated_links(path.read_text().splitlines()) for name, path in files.items()}
    said = {name: links_in(rows, name) for name in RULES}
    systems = link_scores(gold, said, seed=0, resamples=10)["systems"]
    page = PAGE.read_text(encoding="utf-8")
    for name, title in (
        ("previous_post", "previous message"),
        ("addressed_then_previous", "addressed, then previous"),
    ):
        cells = [f"{100 * score['value']:.1f}" for score in systems[name].values()]
        assert f"| {title} | {' | '.join(cells)} |" in page


def test_a_build_writes_what_the_rules_answer(tmp_path: Path) -> None:
    lines = ["<ann> red", "<bob> blue", "<bob> green", "<cy> ann: yes", "<ann> why", "<dan> hello"]
    for split in ("train", "dev"):
        log(tmp_path / split, split, lines, ["0 0", "0 1", "0 2", "0 3", "1 4", "3 5", "2 5"])
    task = {"source": str(tmp_path), "format": "irc", "legs": ["bm25", "recency"], "window": 4}
    build_record_files(ContextConfig(threads=ThreadsTask.model_validate(task)), tmp_path / "out")
    rows = read_rankings(tmp_path / "out" / "rankings.parquet", "threads", "test")
    found = [
        [row["id"].rpartition(":")[2], *row["previous_other_author"], *row["addressed_then_previous"]]
        + [row["distance"], row["thread_messages"], row["addressed"]]
        for row in rows
    ]
    assert found == [
        ["1", "0", "0", 1, 6, False],
        ["2", "0", "1", 2, 6, False],
        ["3", "2", "0", 3, 6, True],
        ["4", "3", "3", 3, 6, False],
        # Dan speaks for the first time: as an answer among the posts, the rule takes the last one.
        ["5", "4", "4", 2, 6, False],
    ]
    systems = baseline_predictions(rows)
    assert list(systems) == [
        "random", "opening_post", "previous_post", "previous_other_author", "addressed_then_previous", "bm25",
        "fused"]  # fmt: skip
    assert systems["addressed_then_previous"]["threads:dev/dev:3"] == Prediction("0", "ann")
    assert list(baseline_predictions(rows, names=["fused", "learned"])) == ["fused"]
