"""Threads of any format: which reader reads a task's files."""

from __future__ import annotations

from collections.abc import Iterator

from retrieval.corpus import Tally, Thread
from retrieval.readers import threads_4chan, threads_convokit, threads_discord, threads_irc, threads_mastodon
from retrieval.sources import thread_files, thread_format
from retrieval.task_config import ThreadsTask

_READERS = {
    "4chan": threads_4chan.read_threads,
    "convokit": threads_convokit.read_threads,
    "irc": threads_irc.read_threads,
    "mastodon": threads_mastodon.read_threads,
}


def read_threads(task: ThreadsTask, tally: Tally) -> Iterator[Thread]:
    """The threads of a task's files, in file order.

    Raises:
        InputError: a source is missing or broken, or its format cannot be told.
    """
    kind, files = thread_format(task), thread_files(task)
    if kind == "discord":
        return threads_discord.read_threads(files, task.missing_parents, tally, task.block)
    return _READERS[kind](files, task.missing_parents, tally)
