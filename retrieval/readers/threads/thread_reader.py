"""The interface of thread readers, and the options that they get from the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread


@dataclass(frozen=True)
class ReaderOptions:
    """The options of a thread reader, from the configuration.

    Attributes:
        missing_parents: what a reply to a missing post causes: "error" raises an error for the file, "drop"
            drops and counts the link.
        block: maximum number of messages of one context, in formats whose channels never end.
    """

    missing_parents: Literal["error", "drop"] = "error"
    block: int = 500


class ThreadReader(Protocol):
    """The type of the function `read_threads` of a format."""

    def __call__(
        self, files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
    ) -> Iterator[Thread]:
        """Read the threads of all files, in file order.

        Args:
            files: (split, file) pairs; the split is "" where the files themselves or the seed decide.
            options: the options from the configuration.
            tally: counts what was read, and what was dropped by reason.

        Raises:
            InputError: a file is broken, or a reply refers to a missing post.
        """
        ...
