"""Slack's workspace export: one folder for each channel, with one file of messages for each day.

A file such as `2024-05-01.json` is `[{"type": "message", "user": "U1", "ts": "1714557600.000100", "text": …,
"thread_ts"?, "subtype"?}, …]`. A message whose `thread_ts` is another message's `ts` replies to that message.
`users.json` beside the channels names the people. Without that file, the name is that in a message's
`user_profile`, else the id. A channel is a thread, cut into blocks of messages because it never ends.
Messages of the system (joins, topics) are dropped and counted. In texts, `<@U1>` becomes the name and
`<url|label>` the label; `&amp;`, `&lt;` and `&gt;` are unescaped.

Formats: https://slack.com/help/articles/220556107-How-to-read-Slack-data-exports,
https://docs.slack.dev/messaging/formatting-message-text
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.rows import rows, text_of
from retrieval.readers.threads.message_tree import Message, blocks, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS
from retrieval.text.normalize import fold
from retrieval.text.times import parse_time

EXPECTED = 'messages with "ts", "user", "text"'

#: Files of messages; the others of an export (users, channels, logs) are lists of other things.
_DAY = re.compile(r"\d{4}-\d\d-\d\d\.json(?:\.gz|\.zst)?$")
# Enterprise exports call the file `org_users.json`.
_USERS = re.compile(r"(?:^|/)(?:org_)?users\.json(?:\.gz|\.zst)?$")
#: Subtypes of messages that a person or a bot wrote; the others are events, such as `channel_join`.
_WRITTEN = frozenset({"bot_message", "me_message", "thread_broadcast", "file_share", "file_comment"})
_MARKUP = re.compile(r"<([^<>|]*)(?:\|([^<>]*))?>")


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each channel as a thread, cut into blocks of at most `options.block` messages.

    Args:
        files: (split, file) pairs of a whole export; the split is "" where the seed decides it.
        options: `block` is the length of a block; `missing_parents` decides about replies to missing
            messages.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a message is broken, or a reply refers to a missing message.
    """
    for split, own in files_by_split(files, tally):
        names = _names(own)
        days = [file for file in own if _DAY.search(file.path.name)]
        found = threads_of(_messages(days, names, tally), split, options.missing_parents, True, tally)
        yield from blocks(found, options.block, tally)


def _names(files: list[SourceFile]) -> dict[str, str]:
    """Return the names of people by id, from the export's list of users."""
    names: dict[str, str] = {}
    for file in files:
        if not _USERS.search(file.path.name):
            continue
        for where, _, value in rows(file, ("id",), (), 'people with "id", "name", "profile"'):
            name = _person(value.get("profile"), where) or _person(value, where)
            if name:
                names[text_of(value["id"], "id", where)] = name
    return names


def _person(value: Any, where: str) -> str:
    """Return the displayed name of a person, or "" if the object has none."""
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise InputError(f"{where}: field profile is {type(value).__name__}, expected an object")
    # As Slack itself shows people: the chosen name first, the account's name last.
    for field in ("display_name", "real_name", "name"):
        if value.get(field):
            return fold(text_of(value[field], field, where))
    return ""


def _messages(files: list[SourceFile], names: Mapping[str, str], tally: Tally) -> Iterator[Message]:
    for file in files:
        # A source that is a single channel's folder has files without a folder in their names.
        channel = PurePosixPath(file.name).parent.name or file.path.resolve().parent.name
        for where, row, value in rows(file, (), (), EXPECTED):
            subtype = value.get("subtype")
            if subtype is not None and not (isinstance(subtype, str) and subtype in _WRITTEN):
                tally.read["posts"] += 1
                tally.dropped["post_of_the_system"] += 1
                continue
            sent = text_of(value.get("ts"), "ts", where)
            opening = value.get("thread_ts")
            # A message that opened a thread of replies names itself.
            parent = "" if opening in (None, sent) else text_of(opening, "thread_ts", where)
            yield Message(
                where,
                f"{channel}/{sent}",  # times are unique within a channel only
                _author(value, names, where),
                _text(value.get("text"), names, where),
                file.name,
                row,
                f"{channel}/{parent}" if parent else "",
                channel,
                _time(sent, where),
            )


def _author(value: Mapping[str, Any], names: Mapping[str, str], where: str) -> str:
    user = value.get("user", value.get("bot_id"))
    key = "" if user is None else text_of(user, "user", where)
    if key in names:
        return names[key]
    profile = _person(value.get("user_profile"), where)
    if profile:
        return profile
    written = value.get("username")  # what a bot calls itself
    return fold(text_of(written, "username", where)) if written else key or ANONYMOUS


def _time(sent: str, where: str) -> float | None:
    try:
        seconds = float(sent)
    except ValueError:
        raise InputError(
            f"{where}: field ts is {sent!r:.40}, expected seconds such as 1714557600.000100"
        ) from None
    return parse_time(seconds, "ts", where)


def _text(value: Any, names: Mapping[str, str], where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: field text is {type(value).__name__}, expected text")

    def plain(match: re.Match[str]) -> str:
        target, label = match[1], match[2]
        # `<@U1>`, in older messages `<@U1|ann>`.
        if target.startswith("@"):
            return "@" + names.get(target[1:], label or "someone")
        if target.startswith(("#", "!")):
            # <#C1|general> is a channel, <!here> and <!subteam^S1|@team> address people.
            return label or target[1:].partition("^")[0] if target[0] == "!" else f"#{label or target[1:]}"
        return label or target

    text = _MARKUP.sub(plain, value or "")
    # `&amp;` last, so that an escaped entity is not unescaped twice.
    return fold(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
