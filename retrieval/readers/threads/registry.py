"""Threads of any format: which reader reads a task's files."""

from __future__ import annotations

from collections.abc import Iterator

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import _JSON_SUFFIXES, IRC_SUFFIX, SourceFile, find_files
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.threads import convokit, discord, fourchan, irc, mastodon
from retrieval.settings.tasks import ThreadsTask

_READERS = {
    "4chan": fourchan.read_threads,
    "convokit": convokit.read_threads,
    "irc": irc.read_threads,
    "mastodon": mastodon.read_threads,
}


def read_threads(task: ThreadsTask, tally: Tally) -> Iterator[Thread]:
    """The threads of a task's files, in file order.

    Raises:
        InputError: a source is missing or broken, or its format cannot be told.
    """
    kind, files = thread_format(task), thread_files(task)
    if kind == "discord":
        return discord.read_threads(files, task.missing_parents, tally, task.block)
    return _READERS[kind](files, task.missing_parents, tally)


_UTTERANCES = tuple(f"utterances.jsonl{packed}" for packed in ("", ".gz", ".zst"))
THREAD_SUFFIXES = {
    "4chan": (*_JSON_SUFFIXES, ".tar", ".tar.gz", ".tgz", ".tar.zst"),
    "convokit": _UTTERANCES,
    "discord": _JSON_SUFFIXES,
    "irc": (IRC_SUFFIX,),
    "mastodon": _JSON_SUFFIXES,
}
#: Fields of a first object that only one format has.
_TELLING_FIELDS = {
    "posts": "4chan",
    "messages": "discord",
    "channel_id": "discord",
    "message_reference": "discord",
    "in_reply_to_id": "mastodon",
    "ancestors": "mastodon",
    "descendants": "mastodon",
    "conversation_id": "convokit",
    "reply-to": "convokit",
    "root": "convokit",
}


def thread_format(task: ThreadsTask) -> str:
    """The format of a thread task: as configured, or told by the names of its files or the first one's
    fields.

    Raises:
        InputError: a source is missing, or the format cannot be told.
    """
    if task.format != "auto":
        return task.format
    from retrieval.readers.files.rows import field_names

    suffixes = tuple({suffix for kinds in THREAD_SUFFIXES.values() for suffix in kinds})
    files = find_files(task.source, suffixes, "threads.source")
    for kind in ("irc", "convokit"):
        if any(file.name.endswith(THREAD_SUFFIXES[kind]) for file in files):
            return kind
    if files[0].name.endswith((".tar", ".tgz", ".tar.gz", ".tar.zst")):
        return "4chan"
    try:
        names = field_names(files[0], tuple(_TELLING_FIELDS))
    except InputError:
        return "4chan"  # its reader says what is wrong with the file
    found = next((_TELLING_FIELDS[name] for name in names if name in _TELLING_FIELDS), None)
    if found is None and names:
        raise InputError(
            f"{files[0].path}: the format cannot be told from the fields {', '.join(names)[:80]}; set "
            f"threads.format to one of {', '.join(THREAD_SUFFIXES)}"
        )
    return found or "4chan"


def thread_files(task: ThreadsTask) -> list[tuple[str, SourceFile]]:
    """(split, file) of a thread task; split is "" where folder names or the seed decide."""
    suffixes = THREAD_SUFFIXES[thread_format(task)]
    split = "train" if task.test_source else ""
    files = [(split, f) for f in find_files(task.source, suffixes, "threads.source")]
    if task.test_source:
        files += [("test", f) for f in find_files(task.test_source, suffixes, "threads.test_source")]
    return files
