"""The interface of thread readers, and the options that they get from the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.settings.columns import ThreadColumns

#: Most messages of a context in a chat whose channels never end.
CHAT_BLOCK = 500


@dataclass(frozen=True)
class ReaderOptions:
    """The options of a thread reader, from the configuration.

    Attributes:
        missing_parents: what a reply to a missing post causes: "error" raises an error for the file, "drop"
            drops and counts the link.
        columns: which columns are what, in a corpus of any format.
    """

    missing_parents: Literal["error", "drop"] = "error"
    columns: ThreadColumns | None = None


class ThreadReader(Protocol):
    """The type of the function `read_threads` of a format."""

    def __call__(
        self, files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
    ) -> Iterator[Thread]:
        """Read the threads of all files, in file order. Long ones are cut into blocks by the caller.

        Args:
            files: (split, file) pairs; the split is "" where the files themselves or the seed decide.
            options: the options from the configuration.
            tally: counts what was read, and what was dropped by reason.

        Raises:
            InputError: a file is broken, or a reply refers to a missing post.
        """
        ...
