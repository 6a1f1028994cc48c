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
from retrieval.settings.file_suffixes import (
    ARCHIVE_SUFFIXES,
    DATASET_FILES,
    JSON_SUFFIXES,
    TABLE_SUFFIXES,
    packed_too,
)


@dataclass(frozen=True)
class ThreadFormat:
    """A format of conversations: how its files are found and identified, and which module reads them.

    Attributes:
        module: dotted name of the module with its `read_threads`.
        suffixes: endings of the files that are read from a folder.
        told_by_name: whether one file with such an ending is enough to identify the format.
        told_by: sets of fields. A first object that has all fields of one set is in this format. The largest
            set decides.
        told_by_numbers: whether the fields of a first object that are all numbers identify the format.
        chat: whether people export it from a running service, so that messages are always missing: replies to
            them are dropped and counted by default, and endless threads are cut into blocks.
        accompanying: names of files that belong to the format but hold no messages.
        companion: ending of a second file that belongs to each file and replaces the ending of its name; ""
            for none.
        quotelinks: whether `>>123` in a text links to a post, which would reveal the answer.
        quotes_parents: whether a reply that repeats its parent's words is a quotation, which would reveal
            the answer.
    """

    module: str
    suffixes: tuple[str, ...]
    told_by_name: bool = False
    told_by: tuple[frozenset[str], ...] = ()
    told_by_numbers: bool = False
    chat: bool = True
    accompanying: tuple[str, ...] = ()
    companion: str = ""
    quotelinks: bool = False
    quotes_parents: bool = True

    def companion_of(self, path: Path) -> Path | None:
        """Return the path of the companion of a file, or None in a format without companions."""
        # `Path.suffix` would give `.txt` of `.ascii.txt`.
        suffix = next((suffix for suffix in self.suffixes if path.name.lower().endswith(suffix)), None)
        if not self.companion or suffix is None:
            return None
        start, ending = path.name[: -len(suffix)], path.name[-len(suffix) :]
        return path.with_name(start + (self.companion.upper() if ending.isupper() else self.companion))


def _sets(*fields: str) -> tuple[frozenset[str], ...]:
    """Return sets of fields. Each argument has the names of one set with spaces between them."""
    return tuple(frozenset(names.split()) for names in fields)


_EXPORTS = "retrieval.readers.threads.exports"

#: Formats with `told_by_name` are checked first. Then the fields decide. The order here has no effect.
THREAD_FORMATS: dict[str, ThreadFormat] = {
    # The only format with archives: the published dumps of boards are `.tar.zst` files.
    "4chan": ThreadFormat(
        "retrieval.readers.threads.fourchan",
        (*JSON_SUFFIXES, *ARCHIVE_SUFFIXES),
        told_by=_sets("posts", "threads"),
        quotelinks=True,
        chat=False,
    ),
    "activitypub": ThreadFormat(
        f"{_EXPORTS}.activitypub",
        JSON_SUFFIXES,
        told_by=_sets("orderedItems", "@context type", "actor object", "inReplyTo"),
        accompanying=("actor.json", "likes.json", "bookmarks.json"),
    ),
    # Any corpus: `columns` says what its fields are.
    "columns": ThreadFormat(f"{_EXPORTS}.mapped", TABLE_SUFFIXES, accompanying=DATASET_FILES),
    "convokit": ThreadFormat(
        "retrieval.readers.threads.convokit",
        packed_too("utterances.jsonl"),
        told_by_name=True,
        told_by=_sets("conversation_id", "reply-to", "root"),
        chat=False,
        accompanying=("conversations.json", "speakers.json", "users.json", "corpus.json", "index.json"),
    ),
    "discord": ThreadFormat(
        "retrieval.readers.threads.discord",
        JSON_SUFFIXES,
        told_by=_sets("messages", "guild messages", "channel messages", "channel_id", "message_reference"),
    ),
    "foolfuuka": ThreadFormat(
        f"{_EXPORTS}.foolfuuka",
        JSON_SUFFIXES,
        told_by=_sets("thread_num", "num thread_num"),
        told_by_numbers=True,
        quotelinks=True,
    ),
    "github": ThreadFormat(
        f"{_EXPORTS}.github",
        JSON_SUFFIXES,
        told_by=_sets(
            "issue_url",
            "comments_url",
            "repository_url",
            "pull_request_url",
            "author_association",
            "html_url user",
            "number comments",
            "number title",
        ),
    ),
    "hackernews": ThreadFormat(
        f"{_EXPORTS}.hackernews",
        JSON_SUFFIXES,
        told_by=_sets(
            "by id",
            "by type",
            "by parent",
            "by time",
            "by descendants",
            "story_id",
            "created_at_i",
            "points children",
            "hits",
        ),
    ),
    "irc": ThreadFormat(
        "retrieval.readers.threads.irc",
        (".ascii.txt",),
        told_by_name=True,
        companion=".annotation.txt",
        quotes_parents=False,  # messages repeat words by chance, and IRC users do not quote
        chat=False,
    ),
    "mastodon": ThreadFormat(
        "retrieval.readers.threads.mastodon",
        JSON_SUFFIXES,
        told_by=_sets("in_reply_to_id", "ancestors", "descendants"),
    ),
    "mbox": ThreadFormat(f"{_EXPORTS}.mailbox", (*packed_too(".mbox"), ".eml"), told_by_name=True),
    "reddit": ThreadFormat(
        f"{_EXPORTS}.reddit",
        # The dumps are called `RC_2012-01.zst` and `RS_2012-01.zst`, without `.jsonl`.
        (*JSON_SUFFIXES, ".zst"),
        told_by=_sets("subreddit", "subreddit_id", "link_id", "selftext", "body parent_id", "kind data"),
    ),
    "slack": ThreadFormat(
        "retrieval.readers.threads.slack",
        JSON_SUFFIXES,
        # The last two are fields of `channels.json`, which may be the first file of an export by name.
        told_by=_sets("ts", "client_msg_id", "is_general", "is_archived"),
    ),
    "stackexchange": ThreadFormat(
        f"{_EXPORTS}.stackexchange",
        packed_too("posts.xml", "comments.xml", "users.xml"),
        told_by_name=True,
        accompanying=(
            "badges.xml",
            "posthistory.xml",
            "postlinks.xml",
            "tags.xml",
            "votes.xml",
        ),
    ),
    "telegram": ThreadFormat(
        f"{_EXPORTS}.telegram",
        JSON_SUFFIXES,
        told_by=_sets("type messages", "name messages", "id messages", "chats", "from_id", "date_unixtime"),
    ),
}
#: The format of a file that no row identifies. The error of its reader describes best what is expected.
FALLBACK_FORMAT = "4chan"
#: Fields whose value may be the whole file, so that reading for the format stops at them.
CONTAINERS = ("messages", "posts", "orderedItems", "chats", "ancestors", "hits", "data", "children")

ThreadFormatName = Annotated[str, OneOf(("auto", *THREAD_FORMATS))]
