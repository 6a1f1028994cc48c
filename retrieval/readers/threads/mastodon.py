"""Mastodon statuses in the format of the API.

A status is `{"id", "in_reply_to_id", "content": HTML, "account", "created_at"}`. A file has one status on
each line, a JSON list of statuses, or the context of a status (`{"ancestors": […], "descendants": […]}`).
Statuses that replies connect are a thread. Boosts are dropped and counted. A content warning stands before
the text. Format: https://docs.joinmastodon.org/entities/Status/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, is_missing, moment_of, reference_of
from retrieval.readers.files.rows import rows, text_of
from retrieval.readers.threads.fourchan import parse_comment
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.normalize import fold

EXPECTED = 'a status: {"id": …, "in_reply_to_id": …, "content": …, "account": {"acct": …}}'


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each set of statuses that replies connect as a thread, in the order of their first statuses.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing statuses.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a status is broken, or a reply refers to a missing status.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, False, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    for file in files:
        for where, row, value in _statuses(file):
            # A boost repeats another account's status under a new id.
            key = id_of(value.get("id"), "id", where)
            if not is_missing(value.get("reblog")):
                yield Message(where, key, "", "", file.name, row, dropped="post_is_a_boost")
                continue
            yield Message(
                where,
                key,
                _author(value.get("account"), where),
                _text(value, where),
                file.name,
                row,
                reference_of(value.get("in_reply_to_id"), "in_reply_to_id", where),
                time=moment_of(value.get("created_at"), "created_at", where),
            )


def _statuses(file: SourceFile) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the statuses of a file. If a row is a context, its statuses are yielded in order."""
    for where, row, value in rows(file, (), (), EXPECTED):
        if "ancestors" not in value and "descendants" not in value:
            yield where, row, value
            continue
        for name in ("ancestors", "descendants"):
            found = value.get(name, [])
            if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
                raise InputError(f"{where}: field {name} is not a list of statuses; expected {EXPECTED}")
            for number, item in enumerate(found, start=1):
                yield f"{where}, {name} {number}", row, item


def _author(value: Any, where: str) -> str:
    """Return the account's name with its server, because names are unique on one server only."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: field account is {type(value).__name__}, expected an object with acct")
    for name in ("acct", "username"):
        if value.get(name):
            return fold(text_of(value[name], f"account.{name}", where))
    return ANONYMOUS


def _text(value: dict[str, Any], where: str) -> str:
    found = {name: content_of(value.get(name), name, where) for name in ("content", "spoiler_text")}
    # `content` is HTML with `<p>` and `<br>`, which 4chan's reader understands; `spoiler_text` is plain text.
    is_reply = not is_missing(value.get("in_reply_to_id"))
    text, warning = parse_comment(found["content"], "", is_reply).text, fold(found["spoiler_text"])
    return titled(warning, text) if text else warning
