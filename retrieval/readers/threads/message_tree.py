"""Group messages, which are read in any order, into threads, and resolve their replies.

The messages lie in a temporary SQLite file between reading and grouping, so that a dump of any size takes
little memory; one thread at a time is read back.
"""

from __future__ import annotations

import heapq
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Post, Tally, Thread

# Neither journal nor syncing: the file is temporary, and a crash loses it anyway.
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE message (seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, parent TEXT, thread TEXT, author TEXT,
    text TEXT, time REAL, source TEXT, row INTEGER, place TEXT, root INTEGER);
"""
# The id is unique, so a repeated message is ignored. The row count then shows that it was.
_INSERT = "INSERT OR IGNORE INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)"
_BY_NAME = """
UPDATE message SET root = (SELECT MIN(seq) FROM message AS other WHERE other.thread = message.thread)
"""
# A message whose parent is not there starts a thread. Messages in a circle of replies have no such start and
# get no root.
_BY_REPLIES = """
WITH RECURSIVE reached(seq, id, root) AS (
    SELECT seq, id, seq FROM message AS m
        WHERE parent IS NULL OR NOT EXISTS (SELECT 1 FROM message AS p WHERE p.id = m.parent)
    UNION ALL
    SELECT child.seq, child.id, reached.root FROM reached JOIN message AS child ON child.parent = reached.id)
UPDATE message SET root = reached.root FROM reached WHERE reached.seq = message.seq
"""
_FIELDS = "id, parent, thread, author, text, time, source, row, place, seq"


@dataclass(frozen=True)
class Message:
    """One message of a conversation, before it is grouped into a thread.

    Attributes:
        where: file and row, for errors.
        id: unique among all messages.
        author: the name that records show.
        text: clean text, which may be empty.
        source: the file's name in records.
        row: the row in records.
        parent: id of the message that it replies to; "" for none.
        thread: id of its thread; "" if only the replies define the threads.
        time: time of writing, in seconds since 1970; None if unknown.
    """

    where: str
    id: str
    author: str
    text: str
    source: str
    row: int
    parent: str = ""
    thread: str = ""
    time: float | None = None


def files_by_split(
    files: Iterable[tuple[str, SourceFile]], tally: Tally
) -> Iterator[tuple[str, list[SourceFile]]]:
    """Return the files of each split, and count them.

    The files are kept together because a thread may be spread over several of them.
    """
    by_split: dict[str, list[SourceFile]] = {}
    for split, file in files:
        by_split.setdefault(split, []).append(file)
    for split, own in by_split.items():
        tally.read["files"] += len(own)
        yield split, own


def threads_of(
    messages: Iterable[Message], split: str, missing_parents: str, by_name: bool, tally: Tally
) -> Iterator[Thread]:
    """Group messages into threads, in the order in which the first message of each thread was read.

    The posts of a thread are in order of time, and a parent always comes before its replies, whatever
    their times are.

    Args:
        messages: the messages of a split, in any order.
        split: split of the threads; "" if the seed decides it.
        missing_parents: "drop" drops and counts a reply to a missing message; "error" raises an error.
        by_name: whether `Message.thread` names the thread; if not, messages that replies connect are a
            thread.
        tally: `read["posts"]` counts the messages. Each is in a thread, or counted in `dropped` as `post_…`.

    Raises:
        InputError: a parent is missing, and `missing_parents` is "error".
    """
    with (
        tempfile.TemporaryDirectory(prefix="jora-messages-") as folder,
        # `isolation_level=None` turns Python's own transactions off: one explicit transaction holds all
        # inserts.
        closing(sqlite3.connect(Path(folder) / "messages.sqlite", isolation_level=None)) as store,
    ):
        store.executescript(_SCHEMA)
        _fill(store, messages, tally)
        # After the inserts: building an index once is faster than updating it for each row.
        store.execute("CREATE INDEX by_parent ON message (parent)")
        if by_name:
            store.execute("CREATE INDEX by_thread ON message (thread, seq)")
        store.execute(_BY_NAME if by_name else _BY_REPLIES)
        (circles,) = store.execute("SELECT COUNT(*) FROM message WHERE root IS NULL").fetchone()
        tally.dropped["post_in_a_circle_of_replies"] += circles
        for rows in _groups(store):
            yield _thread(rows, store, split, missing_parents, tally)


def _fill(store: sqlite3.Connection, messages: Iterable[Message], tally: Tally) -> None:
    store.execute("BEGIN")
    for read, m in enumerate(messages, start=1):
        values = (read, m.id, m.parent or None, m.thread, m.author, m.text, m.time, m.source, m.row, m.where)
        kept = store.execute(_INSERT, values).rowcount
        tally.read["posts"] += 1
        tally.dropped["post_twice"] += not kept
    store.execute("COMMIT")


def _groups(store: sqlite3.Connection) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of each thread, in the order in which they were read."""
    group: list[tuple[Any, ...]] = []
    last = None
    query = f"SELECT root, {_FIELDS} FROM message WHERE root IS NOT NULL ORDER BY root, seq"
    # The cursor streams, so only one thread is in memory.
    for root, *row in store.execute(query):
        if root != last and group:
            yield group
            group = []
        last = root
        group.append(tuple(row))
    if group:
        yield group


def _thread(
    rows: list[tuple[Any, ...]], store: sqlite3.Connection, split: str, missing_parents: str, tally: Tally
) -> Thread:
    here = {row[0] for row in rows}
    posts = []
    for key, parent, _, author, text, time, _, number, where, _ in _in_order(rows):
        parents: tuple[str, ...] = ()
        if parent is not None:
            tally.read["links"] += 1
            if parent in here:
                parents = (parent,)
            elif store.execute("SELECT 1 FROM message WHERE id = ?", (parent,)).fetchone():
                tally.dropped["link_to_other_thread"] += 1
            elif missing_parents == "drop":
                tally.dropped["link_to_missing_post"] += 1
            else:
                raise InputError(
                    f"{where}: post {key} replies to post {parent}, which is not there; add the post, remove "
                    "the reply, or set threads.missing_parents to drop"
                )
        posts.append(Post(key, author, text, parents, number, time=time))
    first = rows[0]
    tally.read["threads"] += 1
    return Thread(first[2] or posts[0].id, tuple(posts), first[6], first[7], split, posts[0].time)


def _in_order(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return rows sorted by time, if all have one, and by order of reading, with parents before their
    replies.
    """
    # Times of some messages only give no order between those with and those without.
    timed = all(row[5] is not None for row in rows)
    by_id = {row[0]: row for row in rows}
    children: dict[str, list[tuple[Any, ...]]] = {}
    ready = []
    for row in rows:
        if row[1] in by_id:
            children.setdefault(row[1], []).append(row)
        else:
            ready.append(_key(row, timed))
    # Kahn's algorithm: `ready` holds the messages whose parent is placed already, the earliest on top.
    heapq.heapify(ready)
    ordered = []
    while ready:
        row = by_id[heapq.heappop(ready)[2]]
        ordered.append(row)
        for child in children.pop(row[0], []):
            heapq.heappush(ready, _key(child, timed))
    # Within a named thread, replies may go in circles; those come last, in the order of reading.
    placed = {row[0] for row in ordered}
    return ordered + [row for row in rows if row[0] not in placed]


def _key(row: tuple[Any, ...], timed: bool) -> tuple[float, int, str]:
    return (row[5] if timed else 0.0, row[9], row[0])


def blocks(threads: Iterable[Thread], size: int, tally: Tally) -> Iterator[Thread]:
    """Cut endless threads, such as the channels of a chat, into threads of at most `size` posts.

    Args:
        threads: the threads.
        size: maximum number of posts of a thread.
        tally: counts the threads, and in `dropped` the links from one block to another.
    """
    for thread in threads:
        if len(thread.posts) <= size:
            yield thread
            continue
        tally.read["threads"] -= 1
        for number, start in enumerate(range(0, len(thread.posts), size), start=1):
            part = thread.posts[start : start + size]
            here = {post.id for post in part}
            posts = []
            for post in part:
                kept = tuple(parent for parent in post.parents if parent in here)
                tally.dropped["link_to_other_block"] += len(post.parents) - len(kept)
                posts.append(
                    Post(post.id, post.author, post.text, kept, post.row, post.has_known_parents, post.time)
                )
            tally.read["threads"] += 1
            name = f"{thread.id}#{number}"
            yield Thread(name, tuple(posts), thread.source, part[0].row, thread.split, part[0].time)
