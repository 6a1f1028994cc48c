"""Telegram Desktop's export `result.json`: of one chat, or of all chats of an account.

One chat: `{"name", "type", "id", "messages": [{"id", "type", "date_unixtime", "from", "from_id", "text",
"reply_to_message_id"}]}`. An account: `{"chats": {"list": [chat, …]}}`. `text` is a text, or a list of texts
and objects with `text`. A chat is a thread. Messages of the service (joins, pins) are dropped and counted.
Format: https://core.telegram.org/import-export
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, is_missing, moment_of, reference_of
from retrieval.readers.files.rows import dicts_of, rows
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS
from retrieval.text.normalize import fold

EXPECTED = 'messages of Telegram with "id", "type", "from", "text"'

#: Where the messages are, of one chat, and of the chats of an account, those that were left too.
_LISTS = ("messages", "chats.list", "left_chats.list")


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each chat as a thread.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing messages.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a message is broken, or a reply refers to a missing message.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, True, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    for file in files:
        header: dict[str, Any] = {}
        for where, row, value in rows(file, (), (), EXPECTED, _LISTS, header):
            if "messages" in value:  # a chat of an account
                for number, one in enumerate(dicts_of(value["messages"], "messages", where), start=1):
                    yield _message(f"{where}, message {number}", row, one, value, file)
            else:
                yield _message(where, row, value, header, file)


def _message(
    where: str, row: int, value: dict[str, Any], chat: Mapping[str, Any], file: SourceFile
) -> Message:
    """Return one message.

    Args:
        where: file and row, for errors.
        row: the row in records.
        value: the message.
        chat: the fields of its chat.
        file: its file.
    """
    name = reference_of(chat.get("id"), "id of the chat", where) or file.name
    key = f"{name}/{id_of(value.get('id'), 'id', where)}"
    if value.get("type", "message") != "message":
        return Message(where, key, "", "", file.name, row, scope=name, dropped="post_of_the_system")
    parent = reference_of(value.get("reply_to_message_id"), "reply_to_message_id", where)
    return Message(
        where,
        key,
        _author(value, where),
        fold(_text(value.get("text"), where)),
        file.name,
        row,
        # A reply to a message of another chat names that chat.
        f"{reference_of(value.get('reply_to_peer_id'), 'reply_to_peer_id', where) or name}/{parent}"
        if parent
        else "",
        name,
        moment_of(value.get("date_unixtime", value.get("date")), "date", where),
        # Two exports of a chat overlap; two chats have ids of their own.
        scope=name,
    )


def _author(value: Mapping[str, Any], where: str) -> str:
    # The name of a deleted account is null; its id still tells people apart.
    for field in ("from", "from_id"):
        if not is_missing(value.get(field)):
            return id_of(value[field], field, where)
    return ANONYMOUS


def _text(value: Any, where: str) -> str:
    if not isinstance(value, list):
        return content_of(value, "text", where)
    pieces = []
    for piece in value:
        found = piece.get("text") if isinstance(piece, dict) else piece
        if isinstance(found, (list, dict)):
            raise InputError(f"{where}: field text has {type(found).__name__} in its list, expected texts")
        pieces.append(content_of(found, "text", where))
    return "".join(pieces)
