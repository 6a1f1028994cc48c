"""Threads on disk: posts in one flat file, read thread by thread; comments by their places in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.mapped_items import Items, ItemSink
from retrieval.corpus.types import Post, Tally, Thread
from retrieval.evaluation.task_report import Progress
from retrieval.guards.splits import split_of, splits_by_time
from retrieval.prompts import templates
from retrieval.readers.threads.registry import read_threads
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask


@dataclass(frozen=True)
class Ask:
    """A comment to ask about: places within its thread, and where the thread starts in the flat corpus."""

    thread: Thread
    split: str
    start: int
    place: int
    parents: tuple[int, ...]
    low: int

    @property
    def comment(self) -> Post:
        return self.thread.posts[self.place]

    @property
    def name(self) -> str:
        return f"threads:{self.thread.id}:{self.comment.id}"


@dataclass(frozen=True)
class ThreadRow:
    """A thread without its posts, which are posts `start` to `start + n - 1` of the flat corpus."""

    id: str
    source: str
    row: int
    split: str
    time: float | None
    start: int
    n: int


@dataclass(frozen=True)
class AskRow:
    """An `Ask` by the number of its thread."""

    thread: int
    place: int
    parents: tuple[int, ...]
    low: int


class ThreadStore:
    """Threads and posts on disk; one thread is kept at hand, since its comments come one after another."""

    def __init__(self, folder: Path) -> None:
        self.posts = Items(folder / "posts.arrow", Post)
        self.rows = Items(folder / "threads.arrow", ThreadRow)
        self._at_hand: tuple[int, Thread] | None = None

    def thread(self, number: int) -> Thread:
        if self._at_hand is None or self._at_hand[0] != number:
            row = self.rows[number]
            posts = tuple(self.posts.run(row.start, row.start + row.n))
            self._at_hand = number, Thread(row.id, posts, row.source, row.row, row.split, row.time)
        return self._at_hand[1]

    def ask(self, row: AskRow) -> Ask:
        start, split = self.rows.value("start", row.thread), self.rows.value("split", row.thread)
        return Ask(self.thread(row.thread), split, start, row.place, row.parents, row.low)

    def texts(self) -> Iterator[str]:
        """What is indexed of every post."""
        return (templates.thread_document(post.author, post.text) for post in self.posts)


def store_threads(
    config: ContextConfig, task: ThreadsTask, folder: Path, tally: Tally, progress: Progress
) -> ThreadStore:
    """All threads in source order, each id once (a test thread wins over its double in training)."""
    rows: dict[str, ThreadRow] = {}
    read = 0
    with ItemSink(folder / "all-posts.arrow", Post) as posts:
        for thread in read_threads(task, tally):
            start = posts.rows
            for post in thread.posts:
                posts.add(post)
            read += 1
            if read % 500 == 0:
                progress("threads: read", read, 0)
            if thread.id in rows:
                tally.dropped["thread_twice"] += 1
                if rows[thread.id].split == "test" or thread.split != "test":
                    continue
            about = (thread.id, thread.source, thread.row, thread.split, thread.time)
            rows[thread.id] = ThreadRow(*about, start, len(thread.posts))
    progress("threads: read", read, read)
    if not rows:
        raise InputError(f"threads.source: {task.source} holds no thread; expected at least one")
    _write_threads(folder, list(rows.values()), _splits(config, task, list(rows.values())))
    return ThreadStore(folder)


def _write_threads(folder: Path, rows: Sequence[ThreadRow], splits: Sequence[str]) -> None:
    """The threads with their splits, and their posts alone, in the threads' order."""
    everything = Items(folder / "all-posts.arrow", Post)
    with (
        ItemSink(folder / "posts.arrow", Post) as posts,
        ItemSink(folder / "threads.arrow", ThreadRow) as threads,
    ):
        for row, split in zip(rows, splits, strict=True):
            threads.add(replace(row, split=split, start=posts.rows))
            for post in everything.run(row.start, row.start + row.n):
                posts.add(post)
    (folder / "all-posts.arrow").unlink()


def _splits(config: ContextConfig, task: ThreadsTask, threads: Sequence[ThreadRow]) -> list[str]:
    """The split of each thread: what its source says, else what the hash of its id or its time says."""
    if task.split == "time" and (times := {t.id: t.time for t in threads if not t.split}):
        by_time = splits_by_time(times, config.test_share, "threads.split")
        return [t.split or by_time[t.id] for t in threads]
    return [t.split or split_of(config.seed, t.id, config.test_share) for t in threads]
