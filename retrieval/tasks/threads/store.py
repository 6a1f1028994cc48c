"""Threads on disk. Posts lie in one flat file and are read thread by thread. Comments are places in it."""

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

#: Posts of a thread that tell whether another one with its id is the same thread.
_COMPARED = 16


@dataclass(frozen=True)
class Reply:
    """A comment of a thread, and the posts that it answers. The model predicts these posts.

    Attributes:
        thread: the comment's thread.
        split: "train" or "test".
        start: place of the thread's first post in the flat corpus.
        place: the comment's place in the thread.
        parents: places in the thread of the earlier posts that the comment answers, in link order.
        low: place in the thread of the first candidate. The last candidate is the post before the comment.
    """

    thread: Thread
    split: str
    start: int
    place: int
    parents: tuple[int, ...]
    low: int

    @property
    def comment(self) -> Post:
        """The post that is the comment."""
        return self.thread.posts[self.place]

    @property
    def name(self) -> str:
        """The id of the record."""
        return self.record_id(self.thread, self.comment)

    @staticmethod
    def record_id(thread: Thread, post: Post) -> str:
        """Return the id of the record of a post."""
        return f"threads:{thread.id}:{post.id}"

    @property
    def candidates(self) -> Sequence[Post]:
        """The posts before the comment that the prompt may contain."""
        return self.thread.posts[self.low : self.place]

    @property
    def gold(self) -> list[int]:
        """Places, among the candidates, of the posts that the comment answers, in link order."""
        return [parent - self.low for parent in self.parents if parent >= self.low]

    @property
    def parent_posts(self) -> list[Post]:
        """Every post that the comment answers, candidate or not, in thread order."""
        return [self.thread.posts[place] for place in sorted(self.parents)]


@dataclass(frozen=True)
class ThreadRow:
    """The stored form of a thread: its posts are the posts `start` to `start + n - 1` of the flat corpus."""

    id: str
    source: str
    row: int
    split: str
    time: float | None
    start: int
    n: int
    links: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ReplyRow:
    """The stored form of a `Reply`, with the number of its thread in place of the thread."""

    thread: int
    place: int
    parents: tuple[int, ...]
    low: int


class ThreadStore:
    """Threads and posts on disk.

    The last thread that was read stays in memory, because the comments of a thread follow one another.
    """

    def __init__(self, folder: Path) -> None:
        self.posts = Items(folder / "posts.arrow", Post)
        self.rows = Items(folder / "threads.arrow", ThreadRow)
        self._last: tuple[int, Thread] | None = None

    def thread(self, number: int) -> Thread:
        """Return a thread with its posts."""
        if self._last is None or self._last[0] != number:
            row = self.rows[number]
            posts = tuple(self.posts.run(row.start, row.start + row.n))
            self._last = number, Thread(row.id, posts, row.source, row.row, row.split, row.time, row.links)
        return self._last[1]

    def reply(self, row: ReplyRow) -> Reply:
        """Return a stored reply with its thread."""
        start, split = self.rows.value("start", row.thread), self.rows.value("split", row.thread)
        return Reply(self.thread(row.thread), split, start, row.place, row.parents, row.low)

    def texts(self) -> Iterator[str]:
        """Yield the indexed text of every post."""
        return (templates.thread_document(post.author, post.text) for post in self.posts)


def store_threads(
    config: ContextConfig, task: ThreadsTask, folder: Path, tally: Tally, progress: Progress
) -> ThreadStore:
    """Read all threads and write them to files, in source order. Each id occurs once.

    Of two threads with the same id, the thread in the test split is kept.

    Args:
        config: the configuration, which decides the split if the source does not.
        task: the settings of the task, with the detected format.
        folder: folder of the files.
        tally: counts what was read and dropped.
        progress: receives (step, threads read, total).

    Raises:
        InputError: a source is missing or broken, or holds no thread.
    """
    rows: dict[str, ThreadRow] = {}
    known: dict[str, frozenset[int]] = {}
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
            own = _own_id(thread, known)
            if own != thread.id and own not in rows:
                tally.read["threads_with_the_id_of_another"] += 1
            thread = replace(thread, id=own)
            if thread.id in rows:
                tally.dropped["thread_twice"] += 1
                # A thread in both splits is held out: in training it would show the test split.
                if rows[thread.id].split == "test" or thread.split != "test":
                    continue
            about = (thread.id, thread.source, thread.row, thread.split, thread.time)
            rows[thread.id] = ThreadRow(*about, start, len(thread.posts), thread.links)
    progress("threads: read", read, read)
    if not rows:
        raise InputError(f"threads.source: {task.source} holds no thread; expected at least one")
    # A second pass drops the posts of threads that did not stay, so that the indexes do not see them.
    _write_threads(folder, list(rows.values()), _splits(config, task, list(rows.values())))
    return ThreadStore(folder)


def _own_id(thread: Thread, known: dict[str, frozenset[int]]) -> str:
    """Return the id of a thread, with the name of its file if another thread has the id.

    Args:
        thread: the thread.
        known: hashes of the first posts of the threads before, by id; receives those of this thread.
    """
    # Hashes of Python differ between processes, which is harmless: they are compared in this one only.
    posts = frozenset(hash((post.id, post.text)) for post in thread.posts[:_COMPARED] if post.text)
    for name in (thread.id, f"{thread.source}/{thread.id}"):
        first = known.setdefault(name, posts)
        # One post in common is enough: crawls of a thread begin and end at different posts.
        if first is posts or not first or not posts or first & posts:
            return name
    return f"{thread.source}:{thread.row}/{thread.id}"


def _write_threads(folder: Path, rows: Sequence[ThreadRow], splits: Sequence[str]) -> None:
    """Write the threads with their splits, and their posts in thread order to a separate file."""
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
    """Return the split of each thread: that of its source, else the split by the hash of its id or by its
    time.
    """
    if task.split == "time" and (times := {t.id: t.time for t in threads if not t.split}):
        by_time = splits_by_time(times, config.test_share, "threads.split")
        return [t.split or by_time[t.id] for t in threads]
    return [t.split or split_of(config.seed, t.id, config.test_share) for t in threads]
