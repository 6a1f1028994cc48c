"""Reddit: the dumps of comments and submissions (`RC_2012-01.zst`, `RS_2012-01.zst`), and pages as JSON.

A comment is `{"id", "parent_id": "t1_…" or "t3_…", "link_id": "t3_…", "author", "body", "created_utc"}`, a
submission `{"id", "title", "selftext", "author", "created_utc"}`. A page (`…/comments/abc.json`) is a list of
listings, whose comments hold their replies. Archives such as PullPush answer `{"data": [comment, …]}`.
A submission with its comments is a thread. Quoted lines are
removed, because they reveal the answer. Formats: https://github.com/pushshift/api,
https://www.reddit.com/dev/api
"""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, is_missing, moment_of, reference_of
from retrieval.readers.files.rows import rows
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.message_text import without_quotes
from retrieval.text.normalize import fold

EXPECTED = 'a comment ("id", "parent_id", "link_id", "body") or a submission ("id", "title")'
#: What stands in the place of an author or a text that is gone.
_GONE = frozenset({"[deleted]", "[removed]"})


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each submission with its comments as a thread.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing posts.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a post is broken, or a reply refers to a missing post.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, True, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    for file in files:
        for where, row, value in rows(file, (), (), EXPECTED, ("data", "")):
            for post in _posts(value, where):
                yield _message(where, row, post, file)


def _posts(value: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield the posts of a row: the row itself, or all posts of a listing with their replies."""
    stack = [value]
    while stack:
        thing = stack.pop()
        data = thing.get("data")
        if not isinstance(data, dict) or "kind" not in thing:
            yield thing
            continue
        children = data.get("children") if thing["kind"] == "Listing" else None
        if thing["kind"] != "Listing":
            yield {**data, "kind": thing["kind"]}
            replies = data.get("replies")
            children = [replies] if isinstance(replies, dict) else []
        if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
            raise InputError(f"{where}: field children is not a list of posts; expected {EXPECTED}")
        stack += reversed(children)


def _message(where: str, row: int, value: dict[str, Any], file: SourceFile) -> Message:
    """Return one post.

    Args:
        where: file and row, for errors.
        row: the row in records.
        value: the post.
        file: its file.
    """
    key = id_of(value.get("id"), "id", where)
    # Comments that the page did not load.
    if value.get("kind") == "more":
        return Message(where, f"more_{key}", "", "", file.name, row, dropped="post_not_loaded")
    is_comment = not is_missing(value.get("link_id")) or "body" in value
    key = f"{'t1' if is_comment else 't3'}_{key.rpartition('_')[2]}"
    parent = reference_of(value.get("parent_id"), "parent_id", where) if is_comment else ""
    link = reference_of(value.get("link_id"), "link_id", where) if is_comment else key
    # The oldest dumps have numbers in place of names such as t1_abc.
    parent = parent if "_" in parent or not parent else f"t1_{parent}"
    text = content_of(value.get("body" if is_comment else "selftext"), "body", where)
    text = "" if text.strip() in _GONE else fold(without_quotes(unescape(text)))
    title = fold(unescape(content_of(value.get("title"), "title", where))) if not is_comment else ""
    return Message(
        where,
        key,
        _author(value.get("author"), where),
        (titled(title, text) if text else title),
        file.name,
        row,
        parent,
        link or parent or key,
        moment_of(value.get("created_utc"), "created_utc", where),
    )


def _author(value: Any, where: str) -> str:
    author = reference_of(value, "author", where)
    return ANONYMOUS if author in ("", *_GONE) else author
