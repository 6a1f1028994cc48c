"""ActivityPub: the outbox that a user of Mastodon and like services can download, and activities or notes.

`outbox.json` is `{"type": "OrderedCollection", "orderedItems": [activity, …]}`; an activity
is `{"type": "Create", "actor", "object": note}`.
A note is `{"id", "type": "Note", "inReplyTo", "attributedTo", "published", "summary", "content": HTML}`.
Activities and notes may also stand in a list or one a line. Notes that replies connect are a thread. Boosts
(`Announce`) and other activities are dropped and counted. Formats: https://www.w3.org/TR/activitypub,
https://docs.joinmastodon.org/user/moving/#export
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, is_missing, moment_of, reference_of
from retrieval.readers.files.rows import rows
from retrieval.readers.threads.fourchan import parse_comment
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.normalize import fold

EXPECTED = 'an ActivityPub outbox, or notes with "id", "inReplyTo", "attributedTo", "content"'
_WRITTEN = frozenset({"Note", "Article", "Question", "Page"})
# `https://example.org/users/ann`, `https://example.org/@ann`
_ACTOR = re.compile(r"^https?://([^/]+)/(?:.*/)?@?([^/]+)/?$")


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each set of notes that replies connect as a thread.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing notes.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a note is broken, or a reply refers to a missing note.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, False, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    for file in files:
        for where, row, value in rows(file, (), (), EXPECTED, ("orderedItems", "items", "")):
            yield _message(where, row, value, file)


def _message(where: str, row: int, value: dict[str, Any], file: SourceFile) -> Message:
    """Return one note, or a dropped message for another activity.

    Args:
        where: file and row, for errors.
        row: the row in records.
        value: an activity or a note.
        file: its file.
    """
    inner = value.get("object")
    note = inner if isinstance(inner, dict) else value
    key = id_of(note.get("id", value.get("id")), "id", where)
    if value.get("type") == "Announce":
        return Message(where, key, "", "", file.name, row, dropped="post_is_a_boost")
    # JSON-LD allows a list of types.
    kinds = note.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not any(isinstance(kind, str) and kind in _WRITTEN for kind in kinds):
        # Likes, follows, deletions; and activities that name their note by address only.
        return Message(where, key, "", "", file.name, row, dropped="post_of_the_system")
    parent = note.get("inReplyTo")
    if isinstance(parent, list):
        parent = parent[0] if parent else None
    parent = parent.get("id") if isinstance(parent, dict) else parent
    parent = reference_of(parent, "inReplyTo", where)
    text = parse_comment(content_of(note.get("content"), "content", where), "", bool(parent)).text
    title = fold(content_of(note.get("summary", note.get("name")), "summary", where))
    return Message(
        where,
        key,
        _author(note.get("attributedTo", value.get("actor")), where),
        titled(title, text) if text else title,
        file.name,
        row,
        parent,
        time=moment_of(note.get("published", value.get("published")), "published", where),
    )


def _author(value: Any, where: str) -> str:
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("preferredUsername") or value.get("id")
    if is_missing(value):
        return ANONYMOUS
    name = id_of(value, "attributedTo", where)
    match = _ACTOR.match(name)
    return f"{match[2]}@{match[1]}" if match else name
