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
from pathlib import Path
from typing import Any, NamedTuple

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Post, Tally, Thread
from retrieval.text.message_text import visible

# Neither journal nor syncing: the file is temporary, and a crash loses it anyway.
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE message (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, parent TEXT, thread TEXT, author TEXT,
    text TEXT, time REAL, source TEXT, row INTEGER, place TEXT, scope INTEGER, others TEXT, known INTEGER,
    mark TEXT, root INTEGER, UNIQUE (id, scope));
CREATE TABLE gone (id TEXT NOT NULL, scope INTEGER);
"""
# An id is unique in its scope, so a repeated message is ignored. The row count then shows that it was.
_INSERT = "INSERT OR IGNORE INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)"
# Scopes whose ids name other messages than in an earlier scope: fewer than half of the shared ids have equal
# texts. In dumps that overlap, nearly all have; a few messages were edited.
_OTHER_MESSAGES = """
SELECT DISTINCT later FROM (SELECT b.scope AS later, COUNT(*) AS shared, SUM(a.text = b.text) AS equal
    FROM message AS b JOIN message AS a ON a.id = b.id AND a.seq < b.seq GROUP BY a.scope, b.scope)
    WHERE 2 * equal < shared
"""
# Corpora in which a thread has the name of a thread in an earlier corpus.
_OTHER_THREADS = "SELECT thread, scope FROM message GROUP BY thread, scope ORDER BY thread, scope"
_QUALIFY = """
UPDATE message SET id = own(id), parent = own(parent), others = own(others), thread = own(thread)
    WHERE scope = ?
"""
_REPEATED = """
DELETE FROM message WHERE EXISTS (SELECT 1 FROM message AS a WHERE a.id = message.id AND a.seq < message.seq)
"""
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
_FIELDS = "id, parent, thread, author, text, time, source, row, place, seq, others, known, mark"
#: Between the ids of a list in one column.
_BETWEEN = "\x1f"


class Message(NamedTuple):
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
        others: ids of further messages that it answers.
        has_known_parents: False if the source does not say what the message answers.
        scope: the corpus in which the id is unique, if that is more than one file; "" for the file.
        mark: what tells its author from others of the same name, such as a tripcode; "" for nothing.
        dropped: reason to leave the message out, such as "post_of_the_system"; "" to keep it. Replies to it
            are counted as links to a dropped post.
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
    others: tuple[str, ...] = ()
    has_known_parents: bool = True
    scope: str = ""
    mark: str = ""
    dropped: str = ""


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
        scopes = _fill(store, messages, tally)
        if len(scopes) > 1:
            _make_distinct(store, scopes, by_name, tally)
        # After the inserts: building an index once is faster than updating it for each row.
        store.execute("CREATE INDEX by_parent ON message (parent)")
        if by_name:
            store.execute("CREATE INDEX by_thread ON message (thread, seq)")
        store.execute(_BY_NAME if by_name else _BY_REPLIES)
        (circles,) = store.execute("SELECT COUNT(*) FROM message WHERE root IS NULL").fetchone()
        tally.dropped["post_in_a_circle_of_replies"] += circles
        for rows in _groups(store):
            yield _thread(rows, store, split, missing_parents, tally)


def _fill(store: sqlite3.Connection, messages: Iterable[Message], tally: Tally) -> list[tuple[str, bool]]:
    """Store the messages. Return the name of each scope, and whether it is a corpus of several files."""
    scopes: dict[tuple[str, bool], int] = {}
    store.execute("BEGIN")
    read = twice = 0
    for read, m in enumerate(messages, start=1):
        scope = scopes.setdefault((m.scope or m.source, bool(m.scope)), len(scopes))
        if m.dropped:
            tally.dropped[m.dropped] += 1
            store.execute("INSERT INTO gone VALUES (?, ?)", (m.id, scope))
            continue
        about = (m.thread, visible(m.author), visible(m.text), m.time, m.source, m.row, m.where)
        links = (scope, _BETWEEN.join(m.others), m.has_known_parents, m.mark)
        kept = store.execute(_INSERT, (read, m.id, m.parent or None, *about, *links)).rowcount
        twice += not kept
    tally.read["posts"] += read
    tally.dropped["post_twice"] += twice
    store.execute("COMMIT")
    store.execute("CREATE INDEX by_gone ON gone (id)")
    return list(scopes)


def _make_distinct(
    store: sqlite3.Connection, scopes: list[tuple[str, bool]], by_name: bool, tally: Tally
) -> None:
    """Give the messages of a file or corpus ids of their own if other ones have the same ids.

    Equal messages in several files are one message, as in dumps that overlap.
    """
    other = {scope for (scope,) in store.execute(_OTHER_MESSAGES)}
    if by_name and any(is_corpus for _, is_corpus in scopes):
        last = None
        for thread, scope in store.execute(_OTHER_THREADS):
            if thread == last and scopes[scope][1]:
                other.add(scope)
            last = thread
    for scope in sorted(other):
        name = scopes[scope][0]

        def own(ids: str | None, name: str = name) -> str | None:
            return ids and _BETWEEN.join(f"{name}/{key}" for key in ids.split(_BETWEEN))

        store.create_function("own", 1, own, deterministic=True)
        store.execute(_QUALIFY, (scope,))
        store.execute("UPDATE gone SET id = own(id) WHERE scope = ?", (scope,))
    tally.read["sources_whose_ids_were_made_distinct"] += len(other)
    tally.dropped["post_twice"] += store.execute(_REPEATED).rowcount


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
    marks: dict[str, set[str]] = {}
    for row in rows:
        marks.setdefault(row[3], set()).add(row[12])
    posts = []
    for key, parent, _, author, text, time, _, number, where, _, others, known, mark in _in_order(rows):
        parents = []
        links = [] if parent is None else [parent]
        for link in dict.fromkeys([*links, *(others.split(_BETWEEN) if others else ())]):
            tally.read["links"] += 1
            if link in here:
                parents.append(link)
            elif store.execute("SELECT 1 FROM message WHERE id = ?", (link,)).fetchone():
                tally.dropped["link_to_other_thread"] += 1
            elif store.execute("SELECT 1 FROM gone WHERE id = ?", (link,)).fetchone():
                tally.dropped["link_to_dropped_post"] += 1
            elif missing_parents == "drop":
                tally.dropped["link_to_missing_post"] += 1
            else:
                raise InputError(
                    f"{where}: post {key} replies to post {link}, which is not there; add the post, remove "
                    "the reply, or set threads.missing_parents to drop"
                )
        author = f"{author} {mark}" if len(marks[author]) > 1 and mark not in ("", author) else author
        posts.append(Post(key, author, text, tuple(parents), number, bool(known), time))
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
