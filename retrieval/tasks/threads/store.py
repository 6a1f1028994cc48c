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
class Reply:
    """The comment of a record: which earlier post of its thread does it answer?

    Attributes:
        thread: the comment's thread.
        split: "train" or "test".
        start: place of the thread's first post in the flat corpus.
        place: the comment's place in the thread.
        parents: places in the thread of the earlier posts that it answers, in link order.
        low: place in the thread of the first candidate; the candidates end before the comment.
    """

    thread: Thread
    split: str
    start: int
    place: int
    parents: tuple[int, ...]
    low: int

    @property
    def comment(self) -> Post:
        """The comment itself."""
        return self.thread.posts[self.place]

    @property
    def name(self) -> str:
        """The record's id."""
        return f"threads:{self.thread.id}:{self.comment.id}"

    @property
    def candidates(self) -> Sequence[Post]:
        """The posts before the comment that may stand in the prompt."""
        return self.thread.posts[self.low : self.place]

    @property
    def gold(self) -> list[int]:
        """Places among the candidates of those that the comment answers, in link order."""
        return [parent - self.low for parent in self.parents if parent >= self.low]

    @property
    def parent_posts(self) -> list[Post]:
        """Every post that the comment answers, candidate or not, in thread order."""
        return [self.thread.posts[place] for place in sorted(self.parents)]


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
class ReplyRow:
    """A `Reply` as it is stored: by the number of its thread."""

    thread: int
    place: int
    parents: tuple[int, ...]
    low: int


class ThreadStore:
    """Threads and posts on disk; the last one stays in memory, since its comments come one after another."""

    def __init__(self, folder: Path) -> None:
        self.posts = Items(folder / "posts.arrow", Post)
        self.rows = Items(folder / "threads.arrow", ThreadRow)
        self._last: tuple[int, Thread] | None = None

    def thread(self, number: int) -> Thread:
        """Return a thread with its posts."""
        if self._last is None or self._last[0] != number:
            row = self.rows[number]
            posts = tuple(self.posts.run(row.start, row.start + row.n))
            self._last = number, Thread(row.id, posts, row.source, row.row, row.split, row.time)
        return self._last[1]

    def reply(self, row: ReplyRow) -> Reply:
        """Return a stored reply with its thread."""
        start, split = self.rows.value("start", row.thread), self.rows.value("split", row.thread)
        return Reply(self.thread(row.thread), split, start, row.place, row.parents, row.low)

    def texts(self) -> Iterator[str]:
        """Return what the indexes hold of every post."""
        return (templates.thread_document(post.author, post.text) for post in self.posts)


def store_threads(
    config: ContextConfig, task: ThreadsTask, folder: Path, tally: Tally, progress: Progress
) -> ThreadStore:
    """Read all threads into files, in source order, each id once.

    Of two threads with one id, the one of the test split stays.

    Args:
        config: the configuration, for splits that the source does not decide.
        task: the task's settings, with the format that was found.
        folder: gets the files.
        tally: counts what was read and dropped.
        progress: receives (step, threads read, total).

    Raises:
        InputError: a source is missing or broken, or holds no thread.
    """
    rows: dict[str, ThreadRow] = {}
    read = 0
    with ItemSink(folder / "all-posts.arrow", Post) as posts:
        for thread in read_threads(task, tally):
            start = posts.rows
            # Written before it is known whether the thread stays: threads come as a stream, and a later one
            # with the same id may win.
            for post in thread.posts:
                posts.add(post)
            read += 1
            if read % 500 == 0:
                progress("threads: read", read, 0)
            if thread.id in rows:
                tally.dropped["thread_twice"] += 1
                # A thread in both splits is held out: in training it would show the test split.
                if rows[thread.id].split == "test" or thread.split != "test":
                    continue
            about = (thread.id, thread.source, thread.row, thread.split, thread.time)
            rows[thread.id] = ThreadRow(*about, start, len(thread.posts))
    progress("threads: read", read, read)
    if not rows:
        raise InputError(f"threads.source: {task.source} holds no thread; expected at least one")
    # A second pass drops the posts of threads that did not stay, so that the indexes do not see them.
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
