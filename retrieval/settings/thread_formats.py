"""The formats of conversations, one row for each: its file names, the fields that identify it, its reader.

To add a format, write `retrieval/readers/threads/<name>.py` with a function `read_threads`
(:class:`retrieval.readers.threads.thread_reader.ThreadReader`) and add its row to `THREAD_FORMATS`. The
configuration, the check of its values and the form know the format from that row.

Nothing here imports a reader: `jora plan` loads this table, and the readers need parsers that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from retrieval.settings.choices import OneOf
from retrieval.settings.file_suffixes import ARCHIVE_SUFFIXES, JSON_SUFFIXES


@dataclass(frozen=True)
class ThreadFormat:
    """A format of conversations: how its files are found and identified, and which module reads them.

    Attributes:
        module: dotted name of the module with its `read_threads`.
        suffixes: endings of the files that are read from a folder.
        told_by_name: whether one file with such an ending is enough to identify the format.
        telling_fields: fields of a file's first object that only this format has.
        companion: ending of a second file that belongs to each file and replaces the ending of its name; ""
            for none.
        quotelinks: whether `>>123` in a text links to a post, which would reveal the answer.
        quotes_parents: whether a reply that repeats its parent's words is a quotation, which would reveal
            the answer.
    """

    module: str
    suffixes: tuple[str, ...]
    told_by_name: bool = False
    telling_fields: tuple[str, ...] = ()
    companion: str = ""
    quotelinks: bool = False
    quotes_parents: bool = True

    def companion_of(self, path: Path) -> Path | None:
        """Return the path of the companion of a file, or None in a format without companions."""
        # `Path.suffix` would give `.txt` of `.ascii.txt`.
        suffix = next((suffix for suffix in self.suffixes if path.name.endswith(suffix)), None)
        if not self.companion or suffix is None:
            return None
        return path.with_name(path.name.removesuffix(suffix) + self.companion)


#: Formats with `told_by_name` are checked first. Then the telling fields decide. The order here has no
#: effect.
THREAD_FORMATS: dict[str, ThreadFormat] = {
    # The only format with archives: the published dumps of boards are `.tar.zst` files.
    "4chan": ThreadFormat(
        "retrieval.readers.threads.fourchan",
        (*JSON_SUFFIXES, *ARCHIVE_SUFFIXES),
        telling_fields=("posts",),
        quotelinks=True,
    ),
    "convokit": ThreadFormat(
        "retrieval.readers.threads.convokit",
        tuple(f"utterances.jsonl{packed}" for packed in ("", ".gz", ".zst")),
        told_by_name=True,
        telling_fields=("conversation_id", "reply-to", "root"),
    ),
    "discord": ThreadFormat(
        "retrieval.readers.threads.discord",
        JSON_SUFFIXES,
        telling_fields=("messages", "channel_id", "message_reference"),
    ),
    "irc": ThreadFormat(
        "retrieval.readers.threads.irc",
        (".ascii.txt",),
        told_by_name=True,
        companion=".annotation.txt",
        quotes_parents=False,  # messages repeat words by chance, and IRC users do not quote
    ),
    "mastodon": ThreadFormat(
        "retrieval.readers.threads.mastodon",
        JSON_SUFFIXES,
        telling_fields=("in_reply_to_id", "ancestors", "descendants"),
    ),
    "slack": ThreadFormat(
        "retrieval.readers.threads.slack",
        JSON_SUFFIXES,
        # The last two are fields of `channels.json`, which may be the first file of an export by name.
        telling_fields=("ts", "client_msg_id", "is_general", "is_archived"),
    ),
}
#: The format of a file that no row identifies. The error of its reader describes best what is expected.
FALLBACK_FORMAT = "4chan"

ThreadFormatName = Annotated[str, OneOf(("auto", *THREAD_FORMATS))]
