"""Messages of Discord, in the format of DiscordChatExporter (JSON) or of Discord's API.

Export: `{"guild", "channel": {"id", "name"}, "messages": [{"id", "type", "timestamp", "content", "author":
{"name", "nickname"}, "reference": {"messageId"}}]}`. API: a list, or a line each, of `{"id", "channel_id",
"type", "timestamp", "content", "author": {"username", "global_name"}, "message_reference": {"message_id"}}`.
A channel is a thread, cut into blocks of messages because it never ends. Messages of the system (joins, pins)
are dropped and counted, as are forwards' references, which are no replies.
Formats: https://github.com/Tyrrrz/DiscordChatExporter, https://docs.discord.com/developers/resources/message
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, moment_of, reference_of
from retrieval.readers.files.rows import rows, text_of
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS
from retrieval.text.normalize import fold

EXPECTED = 'messages with "id", "timestamp", "content", "author"'

#: Spoken: default, reply, slash command, thread starter, context menu command.
_SPOKEN = {"Default", "Reply", "ChatInputCommand", "ContextMenuCommand", "ThreadStarterMessage"}
_SPOKEN_NUMBERS = {0, 19, 20, 21, 23}
# Discord writes `<@80351110224678912>` for a person (`<@!…>` in old messages) and `<:name:id>` or
# `<a:name:id>` for an emoji of the server.
_MENTION = re.compile(r"<@!?(\d+)>")
_EMOJI = re.compile(r"<a?(:\w+:)\d+>")
# The API has a number, the exporter a name.
_FORWARD = (1, "1", "Forward")


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each channel as a thread.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing messages.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a message is broken, or a reply refers to a missing message.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own, tally), split, options.missing_parents, True, tally)


def _messages(files: list[SourceFile], tally: Tally) -> Iterator[Message]:
    for file in files:
        # In an export, `channel` stands before `messages`, so the header is filled when the first message
        # comes.
        header: dict[str, Any] = {}
        for where, row, value in rows(file, (), (), EXPECTED, ("messages",), header):
            spoken = _spoken(value.get("type"), where)
            key = id_of(value.get("id"), "id", where) if spoken or "id" in value else ""
            if not spoken:
                yield Message(where, key, "", "", file.name, row, dropped="post_of_the_system")
                continue
            yield Message(
                where,
                key,
                _author(value.get("author"), where),
                _text(value, where),
                file.name,
                row,
                _parent(value, where, tally),
                _channel(value, header, file, where),
                moment_of(value.get("timestamp"), "timestamp", where),
            )


def _spoken(kind: Any, where: str) -> bool:
    # Messages that were saved from answers of the API may lack the type.
    if kind is None:
        return True
    if isinstance(kind, str):
        return kind in _SPOKEN or (kind.isdecimal() and len(kind) < 9 and int(kind) in _SPOKEN_NUMBERS)
    if isinstance(kind, (int, float)):
        return kind in _SPOKEN_NUMBERS
    raise InputError(f"{where}: field type is {type(kind).__name__}, expected a name or number")


def _channel(value: dict[str, Any], header: dict[str, Any], file: SourceFile, where: str) -> str:
    """Return the channel's id, from the message, else from the export, else from the file."""
    found = value.get("channel_id")
    if found is None and isinstance(header.get("channel"), dict):
        found = header["channel"].get("id")
    return reference_of(found, "channel id", where) or file.name


def _parent(value: dict[str, Any], where: str, tally: Tally) -> str:
    reference = value.get("reference", value.get("message_reference"))
    if reference is None:
        return ""
    if not isinstance(reference, dict):
        raise InputError(f"{where}: field reference is {type(reference).__name__}, expected an object")
    if reference.get("type") in _FORWARD:
        tally.read["links"] += 1
        tally.dropped["link_is_a_forward"] += 1
        return ""
    found = reference.get("messageId", reference.get("message_id"))
    return reference_of(found, "reference.messageId", where)


def _author(value: Any, where: str) -> str:
    """Return the displayed name of an author."""
    if value is None:  # a shortened export
        return ANONYMOUS
    if not isinstance(value, dict):
        raise InputError(f"{where}: field author is {type(value).__name__}, expected an object with a name")
    # The name that people use when they name somebody comes first: the legs look for it in texts.
    for name in ("nickname", "global_name", "name", "username"):
        if value.get(name):
            return fold(text_of(value[name], f"author.{name}", where))
    return ANONYMOUS


def _text(value: dict[str, Any], where: str) -> str:
    """Return the content of a message with mentions and emoji replaced by names."""
    content = content_of(value.get("content"), "content", where)
    # All markup of Discord stands between `<` and `>`.
    if not content or "<" not in content:
        return fold(content or "")
    names: dict[str, str] = {}
    mentioned = value.get("mentions")
    for person in mentioned if isinstance(mentioned, list) else []:
        if isinstance(person, dict) and isinstance(person.get("id"), (str, int)):
            names[str(person["id"])] = _author(person, where)
    text = _MENTION.sub(lambda match: "@" + names.get(match[1], "someone"), content)
    return fold(_EMOJI.sub(lambda match: match[1], text))
