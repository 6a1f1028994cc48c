"""What every reader of conversations provides, and what the configuration tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread


@dataclass(frozen=True)
class ReaderOptions:
    """What the configuration says about reading threads.

    Attributes:
        missing_parents: what happens to a reply to a post that is not there: "error" refuses the file,
            "drop" drops the link and counts it.
        block: the most messages of one context, in formats whose channels never end.
    """

    missing_parents: Literal["error", "drop"] = "error"
    block: int = 500


class ThreadReader(Protocol):
    """A format's `read_threads`."""

    def __call__(
        self, files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
    ) -> Iterator[Thread]:
        """Read the threads of all files, in file order.

        Args:
            files: (split, file) pairs; the split is "" where the files themselves or the seed decide.
            options: what the configuration says.
            tally: counts what was read, and what was dropped by reason.

        Raises:
            InputError: a file is broken, or a reply goes to a post that is not there.
        """
        ...
