"""Archives of imageboards that run FoolFuuka (or Asagi's tables): threads of the API, or posts one a line.

The API's thread is `{"570368": {"op": post, "posts": {"570369": post}}}`, its search `{"0": {"posts": [post,
…]}}`. A post is `{"num", "subnum", "thread_num", "timestamp", "name", "trip", "poster_hash", "title",
"comment", "board": {"shortname"}}`. `comment` is plain text, in which `>>570368` links to a post. Links and
quoted lines are removed from the text, because they reveal the answer.
Format: https://4plebs.tech/foolfuuka
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, is_missing, moment_of, reference_of
from retrieval.readers.files.rows import dicts_of, rows
from retrieval.readers.threads.fourchan import clean_comment, parse_comment
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.normalize import fold

EXPECTED = 'a thread {"570368": {"op": …, "posts": …}} or posts with "num", "thread_num", "comment"'
#: A link inside the board; `>>>/b/570368` leads to another one.
_LINK = re.compile(r"(?<!>)>>(\d{1,19}(?:[,_]\d{1,9})?)")


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each thread of the archive.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about links to missing posts.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a post is broken, or a link leads to a missing post.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, True, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    for file in files:
        for where, row, value in rows(file, (), (), EXPECTED):
            for post in _posts(value, where):
                yield _message(where, row, post, file)


def _posts(value: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield the posts of a row: the row itself, or those of the threads in it."""
    if "num" in value:
        yield value
        return
    for name, thread in value.items():
        if name == "meta" or not isinstance(thread, dict):
            continue
        if isinstance(thread.get("op"), dict):
            yield thread["op"]
        posts = thread.get("posts", [])
        # An object by number in a thread, a list in a search.
        yield from dicts_of(list(posts.values()) if isinstance(posts, dict) else posts, "posts", where)


def _message(where: str, row: int, value: dict[str, Any], file: SourceFile) -> Message:
    """Return one post.

    Args:
        where: file and row, for errors.
        row: the row in records.
        value: the post.
        file: its file.
    """
    board = value.get("board")
    board = board.get("shortname") if isinstance(board, dict) else board
    board = reference_of(board, "board", where)
    prefix = f"{board}/" if board else ""
    number = id_of(value.get("num"), "num", where)
    below = reference_of(value.get("subnum"), "subnum", where)
    if below not in ("", "0"):  # a post that was written in the archive itself
        number = f"{number}_{below}"
    comment = content_of(value.get("comment"), "comment", where)
    links = [link.replace(",", "_") for link in _LINK.findall(comment)]
    text = clean_comment(comment)
    if not comment and not is_missing(value.get("comment_processed")):
        text = parse_comment(content_of(value["comment_processed"], "comment_processed", where), "").text
    title = fold(content_of(value.get("title"), "title", where))
    thread = reference_of(value.get("thread_num"), "thread_num", where) or number
    if not thread:
        raise InputError(f"{where}: post {number} names no thread; expected {EXPECTED}")
    name = fold(content_of(value.get("name"), "name", where))
    mark = next(
        (fold(str(value[key])) for key in ("trip", "poster_hash") if not is_missing(value.get(key))), ""
    )
    return Message(
        where,
        f"{prefix}{number}",
        name if name and name != ANONYMOUS else mark or ANONYMOUS,
        titled(title, text) if text else title,
        file.name,
        row,
        thread=f"{prefix}{thread}",
        time=moment_of(value.get("timestamp"), "timestamp", where),
        others=tuple(dict.fromkeys(f"{prefix}{link}" for link in links)),
        mark=mark,
    )
