"""Conversations in any table or JSON, where `columns` says which field is what."""

from __future__ import annotations

from collections.abc import Iterator

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.columns import mapped_rows
from retrieval.readers.files.fields import content_of, id_of, moment_of, reference_of
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.settings.columns import ThreadColumns
from retrieval.text.labels import ANONYMOUS
from retrieval.text.message_text import without_quotes
from retrieval.text.normalize import fold


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each conversation as a thread. A column names the conversation, or replies connect its messages.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: the mapping; `missing_parents` decides about replies to missing messages.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a row is broken, a column is missing, or a reply refers to a missing message.
    """
    columns = options.columns
    assert columns is not None  # the settings see to it
    for split, own in files_by_split(files, tally):
        found = _messages(own, columns)
        yield from threads_of(found, split, options.missing_parents, columns.thread is not None, tally)


def _messages(files: list[SourceFile], columns: ThreadColumns) -> Iterator[Message]:
    for file in files:
        for where, row, value in mapped_rows(file, columns, "threads.columns", ("id",)):
            key = _whole(id_of(value["id"], "id", where))
            parent = _whole(reference_of(value.get("parent"), "parent", where))
            yield Message(
                where,
                key,
                reference_of(value.get("author"), "author", where) or ANONYMOUS,
                fold(without_quotes(content_of(value.get("text"), "text", where))),
                file.name,
                row,
                # In some tables the first message names itself.
                "" if parent == key else parent,
                reference_of(value.get("thread"), "thread", where) or ("" if columns.thread is None else key),
                moment_of(value.get("time"), "time", where),
            )


def _whole(key: str) -> str:
    """Return an id without the fraction that data frames add to numbers, as in `7.0`."""
    return key.removesuffix(".0") if key.removesuffix(".0").isdecimal() else key
