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
from retrieval.readers.files.fields import content_of, is_missing
from retrieval.readers.files.rows import rows, text_of
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS
from retrieval.text.normalize import fold
from retrieval.text.times import parse_time

EXPECTED = 'messages with "ts", "user", "text"'

#: Files of messages; the others of an export (users, channels, logs) are lists of other things.
_DAY = re.compile(r"\d{4}-\d\d-\d\d\.json(?:\.\w+)?$", re.IGNORECASE)
# Enterprise exports call the file `org_users.json`.
_USERS = re.compile(r"(?:^|/)(?:org_)?users\.json(?:\.\w+)?$", re.IGNORECASE)
#: Subtypes of messages that a person or a bot wrote; the others are events, such as `channel_join`.
_WRITTEN = frozenset({"bot_message", "me_message", "thread_broadcast", "file_share", "file_comment"})
_MARKUP = re.compile(r"<([^<>|]*)(?:\|([^<>]*))?>")


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each channel as a thread.

    Args:
        files: (split, file) pairs of a whole export; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing messages.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a message is broken, or a reply refers to a missing message.
    """
    for split, own in files_by_split(files, tally):
        names = _names(own)
        days = [file for file in own if _DAY.search(file.path.name)]
        yield from threads_of(_messages(days, names), split, options.missing_parents, True, tally)


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


def _messages(files: list[SourceFile], names: Mapping[str, str]) -> Iterator[Message]:
    for file in files:
        # A source that is a single channel's folder has files without a folder in their names.
        place = PurePosixPath(file.name).parent
        channel = place.name or file.path.resolve().parent.name
        # The folder of the channels: two workspaces may have channels of the same name.
        workspace = place.parent.as_posix()
        for where, row, value in rows(file, (), (), EXPECTED):
            subtype = value.get("subtype")
            if not is_missing(subtype) and not (isinstance(subtype, str) and subtype in _WRITTEN):
                key = f"{channel}/{value.get('ts')}"
                yield Message(
                    where, key, "", "", file.name, row, scope=workspace, dropped="post_of_the_system"
                )
                continue
            sent = _stamp(value.get("ts"), "ts", where)
            opening = value.get("thread_ts")
            # A message that opened a thread of replies names itself.
            parent = "" if is_missing(opening) else _stamp(opening, "thread_ts", where)
            parent = "" if parent == sent else parent
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
                scope=workspace,
            )


def _author(value: Mapping[str, Any], names: Mapping[str, str], where: str) -> str:
    user = value.get("user", value.get("bot_id"))
    key = "" if is_missing(user) else text_of(user, "user", where)
    if key in names:
        return names[key]
    profile = _person(value.get("user_profile"), where)
    if profile:
        return profile
    written = value.get("username")  # what a bot calls itself
    return fold(text_of(written, "username", where)) if written else key or ANONYMOUS


def _stamp(value: Any, field: str, where: str) -> str:
    # A program that read the time as a number has lost its last zeros.
    return f"{value:.6f}" if isinstance(value, float) and value == value else text_of(value, field, where)


def _time(sent: str, where: str) -> float | None:
    try:
        seconds = float(sent)
    except ValueError:
        raise InputError(
            f"{where}: field ts is {sent!r:.40}, expected seconds such as 1714557600.000100"
        ) from None
    return parse_time(seconds, "ts", where)


def _text(value: Any, names: Mapping[str, str], where: str) -> str:
    content = content_of(value, "text", where)

    def plain(match: re.Match[str]) -> str:
        target, label = match[1], match[2]
        # `<@U1>`, in older messages `<@U1|ann>`.
        if target.startswith("@"):
            return "@" + names.get(target[1:], label or "someone")
        if target.startswith(("#", "!")):
            # <#C1|general> is a channel, <!here> and <!subteam^S1|@team> address people.
            return label or target[1:].partition("^")[0] if target[0] == "!" else f"#{label or target[1:]}"
        return label or target

    text = _MARKUP.sub(plain, content)
    # `&amp;` last, so that an escaped entity is not unescaped twice.
    return fold(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
