"""Conversations in ConvoKit's format: a folder with `utterances.jsonl`, one utterance on each line.

`{"id", "conversation_id", "text", "speaker", "reply-to", "timestamp", "meta"}`; older corpora have `user` for
`speaker` and `root` for `conversation_id`, some have `reply_to`. A conversation is a thread. `meta` is not
read. Format: https://convokit.cornell.edu/documentation/data_format.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, is_missing, moment_of, reference_of
from retrieval.readers.files.rows import rows, text_of
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS
from retrieval.text.normalize import fold

EXPECTED = 'an utterance a line: {"id": …, "conversation_id": …, "speaker": …, "reply-to": …, "text": …}'


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each conversation as a thread, in the order of their first utterances.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing utterances.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a line is broken, or a reply refers to a missing utterance.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, True, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    for file in files:
        # A corpus is a folder, whose ids are unique in that corpus only.
        scope = PurePosixPath(file.name).parent.as_posix()
        for where, row, value in rows(file, ("id",), (), EXPECTED):
            thread = _first(value, ("conversation_id", "root"))
            if thread is None:
                raise InputError(f"{where}: field conversation_id (or root) is missing; expected {EXPECTED}")
            yield Message(
                where,
                id_of(value["id"], "id", where),
                _speaker(_first(value, ("speaker", "user")), where),
                fold(content_of(value.get("text"), "text", where)),
                file.name,
                row,
                reference_of(value.get("reply-to"), "reply-to", where)
                or reference_of(value.get("reply_to"), "reply_to", where),
                id_of(thread, "conversation_id", where),
                moment_of(value.get("timestamp"), "timestamp", where),
                scope=scope,
            )


def _first(value: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        found = value.get(name)
        if not is_missing(found):
            return found
    return None


def _speaker(value: Any, where: str) -> str:
    if isinstance(value, dict):  # an exported Speaker object
        value = value.get("id")
    return ANONYMOUS if value is None else fold(text_of(value, "speaker", where))
