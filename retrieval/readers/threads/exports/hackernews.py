"""Hacker News: items of its API and of BigQuery, and items and search results of Algolia.

API and BigQuery: `{"id", "type", "by", "time", "text", "title", "parent"}`, one a line or in a list. Algolia:
`{"id", "author", "created_at_i", "text", "title", "parent_id", "children": [item, …]}`, or a search result
`{"hits": [{"objectID", "comment_text", …}]}`. Items that replies connect are a thread. Deleted and dead items
are dropped and counted. Texts are HTML. Formats: https://github.com/HackerNews/API,
https://hn.algolia.com/api
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, is_missing, moment_of, reference_of
from retrieval.readers.files.tables import Contents, any_rows
from retrieval.readers.threads.fourchan import parse_comment
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.normalize import fold

EXPECTED = 'an item with "id", "by", "text", "parent"'


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each set of items that replies connect as a thread.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing items.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: an item is broken, or a reply refers to a missing item.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, False, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    for file in files:
        for where, row, value in any_rows(file.path, Contents(EXPECTED, ("hits", ""))):
            if value is None:  # the API's answer for an item that is gone
                yield Message(where, f"{file.name}:{row}", "", "", file.name, row, dropped="post_deleted")
                continue
            if not isinstance(value, dict):
                raise InputError(f"{where}: found {type(value).__name__}, expected {EXPECTED}")
            stack = [value]
            while stack:
                item = stack.pop()
                yield _message(where, row, item, file)
                children = item.get("children")
                # In search results, the children are only ids.
                children = [] if is_missing(children) else children
                if not isinstance(children, list):
                    raise InputError(f"{where}: field children is no list; expected {EXPECTED}")
                stack += reversed([child for child in children if isinstance(child, dict)])


def _message(where: str, row: int, value: dict[str, Any], file: SourceFile) -> Message:
    """Return one item.

    Args:
        where: file and row, for errors.
        row: the row in records.
        value: the item.
        file: its file.
    """
    key = id_of(value.get("id", value.get("objectID")), "id", where)
    gone = not is_missing(value.get("deleted")) or not is_missing(value.get("dead"))
    if gone or value.get("type") == "pollopt":
        reason = "post_deleted" if gone else "post_of_the_system"
        return Message(where, key, "", "", file.name, row, dropped=reason)
    html = next((value[name] for name in ("text", "comment_text", "story_text") if value.get(name)), None)
    text = parse_comment(content_of(html, "text", where), "").text
    title = fold(content_of(value.get("title"), "title", where))
    time = next((value[name] for name in ("time", "created_at_i", "created_at") if value.get(name)), None)
    return Message(
        where,
        key,
        reference_of(value.get("by", value.get("author")), "by", where) or ANONYMOUS,
        titled(title, text) if text else title,
        file.name,
        row,
        reference_of(value.get("parent", value.get("parent_id")), "parent", where),
        time=moment_of(time, "time", where),
    )
