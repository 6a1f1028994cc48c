"""Refuse files of conversations that no reader can read, and say what they are and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile, unpacked_name
from retrieval.corpus.unpacking import open_binary
from retrieval.readers.files.columns import proposal
from retrieval.settings.file_suffixes import packed_too

#: Endings of files that people take for a corpus of threads, though no reader but `columns` reads them.
FOREIGN_SUFFIXES = (
    *packed_too(".csv", ".tsv"),
    *(".xlsx", ".parquet", ".arrow", ".txt", ".html", ".htm", ".xml", ".db", ".sqlite", ".dce"),
)
_TABLES = (".csv", ".tsv", ".xlsx", ".parquet", ".arrow")
_START = 1 << 14
_WHATSAPP = re.compile(
    r"^\u200e?\[?\d{1,4}[./-]\d{1,2}[./-]\d{1,4},? \d{1,2}[:.]\d\d(?:[:.]\d\d)?(?:[  ]?[APap]\.?[Mm]\.?)?\]?"
    r"(?: - | )[^:\n]{1,60}: ",
    re.MULTILINE,
)
_NO_LINKS = "which does not say what a message answers"


def _has(*words: str) -> Callable[[str], bool]:
    return lambda text: all(word in text for word in words)


#: What a file is, told by its first characters, and the way out. The first match decides.
_KNOWN: tuple[tuple[Callable[[str], bool], str], ...] = (
    (
        lambda text: re.match(r'\ufeff?"?AuthorID"?,"?Author"?,"?Date"?,"?Content', text) is not None,
        f"is a CSV file of DiscordChatExporter, {_NO_LINKS}; export the channel again with `-f Json`",
    ),
    (
        _has("chatlog__"),
        "is a page of DiscordChatExporter, whose reply links are incomplete; export the channel again with "
        "`-f Json`",
    ),
    (
        lambda text: re.match(r"\ufeff?=+\s+Guild: ", text) is not None,
        f"is a text file of DiscordChatExporter, {_NO_LINKS}; export the channel again with `-f Json`",
    ),
    (
        _has("Exported Data", 'class="page_wrap'),
        "is a page of Telegram; export the chat again as machine-readable JSON (result.json)",
    ),
    (
        lambda text: _WHATSAPP.search(text) is not None,
        f"is a chat of WhatsApp, {_NO_LINKS}; add the ids of answered messages yourself, in a table that "
        "threads.columns maps",
    ),
    (
        lambda text: '"participants"' in text and '"sender_name"' in text,
        f"is an export of Facebook or Instagram messages, {_NO_LINKS}; add the ids of answered messages "
        "yourself, and map the fields by threads.columns",
    ),
    (
        lambda text: (
            text.lstrip("\ufeff \r\n\t")[:9].lower() in ("<!doctype", "<html><he") or "<html" in text[:200]
        ),
        "is an HTML page; export the conversations as JSON, or convert them to a table that threads.columns "
        "maps",
    ),
)


def refusal(file: SourceFile) -> InputError | None:
    """Return the error for a file that no reader of conversations can read, or None.

    Raises:
        InputError: the file cannot be opened.
    """
    name = unpacked_name(file.path)
    if name.endswith((".db", ".sqlite", ".dce")):
        return InputError(f"{file.path}: is a database; export its messages as JSON lines or CSV")
    text = ""
    if not name.endswith((".xlsx", ".parquet", ".arrow")):
        with open_binary(file.path) as handle:
            text = handle.read(_START).decode("utf-8", "replace")
        for matches, what in _KNOWN:
            if matches(text):
                return InputError(f"{file.path}: {what}")
    if name.endswith(_TABLES):
        return InputError(
            f"{file.path}: is a table, whose columns are not known; set threads.columns, such as "
            f"{proposal(file.path, 'threads')}"
        )
    return None
