"""IRC logs with reply annotations (irc-disentanglement, Kummerfeld et al., ACL 2019, arXiv:1810.11118).

`NAME.ascii.txt` holds one message on each line, counted from 0. `NAME.annotation.txt` holds lines `PARENT
CHILD -`. A message that is linked to itself starts a conversation. A message that is the child of no line is
not annotated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Post, Tally, Thread
from retrieval.readers.files.packed_lines import text_lines
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.settings.thread_formats import THREAD_FORMATS
from retrieval.text.message_text import visible_line
from retrieval.text.normalize import fold
from retrieval.text.times import parse_time

_FORMAT = THREAD_FORMATS["irc"]
(_SUFFIX,) = _FORMAT.suffixes

# `[03:41] <nick> text` is a message, `[03:41]  * nick waves` an action, `=== nick joined` a line of the
# system. Day, brackets and seconds differ between irssi, ZNC, mIRC and others. Before the nick stands the
# sign of an operator or voice, or a space in its place. WeeChat has tabs instead of `<` and `>`.
_CLOCK = r"^(?:\d{4}-\d\d-\d\d[ T])?\[?(?:\d{4}-\d\d-\d\d[ T])?(?P<clock>\d\d:\d\d(?::\d\d)?)\]?"
_NICK = r"[~&@%+! ]*([^>\s~&@%+!][^>\s]*)"
_MESSAGE = re.compile(rf"{_CLOCK}\s+<{_NICK}>(.*)$", re.DOTALL)
_ACTION = re.compile(rf"{_CLOCK}\s+\*(?![*!])\s*{_NICK}(.*)$", re.DOTALL)
_WEECHAT = re.compile(rf"{_CLOCK}\t(?:[ *]+\t{_NICK}|(?!-->|<--|--|==|\*|\t|=!=){_NICK}\t)(.*)$", re.DOTALL)
_LINE_NUMBER = re.compile(r"\d{1,18}$")
_DAY_SECONDS = 24 * 3600
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
# The corpus is published in these three folders. Both `dev` and `test` are held out.
_SPLIT_FOLDERS = {"train": "train", "dev": "test", "test": "test"}


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each log as a thread. Its posts are the messages and actions. System lines are left out.

    Args:
        files: (split, file) pairs. If the split is "", the folder names `train`, `dev` and `test` decide the
            split. Without such a folder, the seed decides.
        options: `missing_parents` decides about annotations that name a missing message.
        tally: counts files, lines, posts and links, and what was dropped.

    Raises:
        InputError: an annotation file is missing, or one of its lines is broken or names a message that
            does not exist.
    """
    for split, file in files:
        if not file.path.name.lower().endswith(_SUFFIX):
            raise InputError(f"{file.path}: not an IRC log; expected a name ending in {_SUFFIX}")
        tally.read["files"] += 1
        tally.read["threads"] += 1
        yield _thread(file, split or _folder_split(file), options.missing_parents, tally)


def _folder_split(file: SourceFile) -> str:
    """Return the split that the innermost folder with the name of a split gives.

    Of a log that the source names as a file, only the folder of the log is checked.
    """
    name = PurePosixPath(file.name)
    folders = name.parent.parts or (file.path.resolve().parent.name,)
    return next((_SPLIT_FOLDERS[part] for part in reversed(folders) if part in _SPLIT_FOLDERS), "")


def _thread(file: SourceFile, split: str, missing_parents: str, tally: Tally) -> Thread:
    lines = [text for _, text in text_lines(file.path)]
    links = _annotations(file, len(lines), missing_parents, tally)
    annotated = {child for child, _ in links}
    parents: dict[int, list[int]] = {}
    for child, parent in links:
        if child != parent:
            parents.setdefault(child, []).append(parent)
    name = file.name[: -len(_SUFFIX)]
    day, clock = _day(name), 0.0
    spoken = [_spoken(line) for line in lines]
    tally.read["lines"] += len(lines)
    posts = []
    for row, message in enumerate(spoken):
        if message is None:
            tally.dropped["system_line"] += 1
            tally.dropped["annotated_system_line"] += row in annotated
            continue
        tally.read["posts"] += 1
        answered = []
        for parent in parents.get(row, ()):
            if spoken[parent] is None:
                tally.dropped["link_to_system_line"] += 1
            else:
                answered.append(str(parent))
        clock = _later(clock, message.clock)
        # The id is the line number, because annotations name messages by it.
        known = row in annotated
        time = None if day is None else day + clock
        posts.append(Post(str(row), message.author, message.text, tuple(answered), row, known, time))
    if not posts:
        raise InputError(f"{file.path}: log without messages; expected lines such as `[03:41] <nick> text`")
    return Thread(name, tuple(posts), file.name, 0, split, day, tuple(links))


def _day(name: str) -> float | None:
    """Return midnight (UTC) of the day in the name of a log, such as `2004-11-15_03`, or None for another
    name.
    """
    found = _DAY.search(name)
    try:
        return parse_time(found[0], "day", name) if found else None
    except InputError:  # digits that are no day of the calendar
        return None


@dataclass(frozen=True)
class _Message:
    """A message or action of a log. `clock` is its time of day in seconds."""

    author: str
    text: str
    clock: int


def _spoken(line: str) -> _Message | None:
    """Return the message or action of a line, or None for a system line."""
    line = visible_line(line)
    match = _MESSAGE.match(line) or _ACTION.match(line)
    author = match[2] if match else ""
    if not match and "\t" in line:
        match = _WEECHAT.match(line)
        author = (match[2] or match[3]) if match else ""
    if not match:
        return None
    hours, minutes, *seconds = map(int, match["clock"].split(":"))
    return _Message(author, fold(match[match.re.groups]), hours * 3600 + minutes * 60 + sum(seconds))


def _later(last: float, clock: int) -> float:
    """Return the time of a message in seconds since the log's first midnight, never before the last message.

    Args:
        last: time of the message before it, in the same seconds.
        clock: time of day of the message, in seconds.
    """
    at = last // _DAY_SECONDS * _DAY_SECONDS + clock
    # Clocks are set back by an hour or a few minutes. A longer way back is the next day.
    return at + _DAY_SECONDS if at < last - _DAY_SECONDS / 2 else max(at, last)


def _annotations(file: SourceFile, n_lines: int, missing_parents: str, tally: Tally) -> list[tuple[int, int]]:
    """Return each link (child, parent) once, in file order; a start of a conversation is linked to itself."""
    path = _FORMAT.companion_of(file.path)
    assert path is not None  # `read_threads` refuses other names
    if not path.is_file():
        raise InputError(f"{file.path}: no annotations; expected {path.name} ({_FORMAT.companion}) beside it")
    links: dict[tuple[int, int], None] = {}
    for number, text in text_lines(path):
        words = text.split()
        if not words:
            continue
        if len(words) < 2 or not (_LINE_NUMBER.match(words[0]) and _LINE_NUMBER.match(words[1])):
            raise InputError(
                f"{path}:{number}: found {text!r:.60}, expected `PARENT CHILD -` with line numbers"
            )
        # Sorted, because the reply is the later line, whichever number comes first in the file.
        parent, child = sorted((int(words[0]), int(words[1])))
        tally.read["links"] += 1
        if child >= n_lines:
            if missing_parents == "drop":
                tally.dropped["link_to_missing_post"] += 1
                continue
            raise InputError(
                f"{path}:{number}: message {child} does not exist, {file.path.name} has {n_lines} lines "
                "(counted from 0); mend the link or set threads.missing_parents to drop"
            )
        if parent == child:
            tally.read["conversation_starts"] += 1
        elif (child, parent) in links:
            tally.dropped["link_twice"] += 1
        links[child, parent] = None
    return list(links)
