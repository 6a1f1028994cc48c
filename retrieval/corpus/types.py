"""What the readers yield: plain frozen values, independent of the file format they came from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Post:
    """One post of a thread; `parents` are ids of earlier or later posts of the same thread, in link order.

    `text` is clean (no HTML, no quotelinks, no quoted lines, single spaces) and may be empty.
    `row` is the post's line or position in its source, `asks` says whether its own parents are known,
    `time` is when it was written in seconds since 1970 (None: unknown).
    """

    id: str
    author: str
    text: str
    parents: tuple[str, ...] = ()
    row: int = 0
    asks: bool = True
    time: float | None = None


@dataclass(frozen=True)
class Thread:
    """A thread in time order; every post may be a parent. `split` is "" where the source is silent.

    `time` is when it began, in seconds since 1970 (None: unknown).
    """

    id: str
    posts: tuple[Post, ...]
    source: str
    row: int = 0
    split: str = ""
    time: float | None = None


@dataclass(frozen=True)
class Table:
    """A table: `header` and `rows` hold folded one-line cells, every row as wide as the header."""

    id: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Document:
    """A document of a question corpus; `row` is 1-based in its source file.

    `time` is since when it is known, in seconds since 1970 (None: always). A chunk of a longer document has
    that document's id as its `parent` and lies at characters `start` to `end` (exclusive) of the source's
    text.
    """

    id: str
    title: str
    text: str
    source: str = ""
    row: int = 0
    time: float | None = None
    parent: str = ""
    start: int = 0
    end: int = 0

    @property
    def context_id(self) -> str:
        """What splits are decided by: the whole document's id."""
        return self.parent or self.id


@dataclass(frozen=True)
class Question:
    """A question about a context (a table's or document's id) with its accepted answers.

    `oracles` are all contexts that together hold the answer, where they are several (HotpotQA's
    supporting facts); `context_id` is the first of them. `time` is when it was asked, in seconds since 1970
    (None: at the end). `span` is where the answer stands in the document's source text, in characters.
    `needs_all` is false where any one of the oracles is enough (chunks of one document).
    """

    id: str
    context_id: str
    text: str
    answers: tuple[str, ...]
    source: str = ""
    row: int = 0
    oracles: tuple[str, ...] = ()
    time: float | None = None
    span: tuple[int, int] | None = None
    needs_all: bool = True

    @property
    def oracle_ids(self) -> tuple[str, ...]:
        """Every context that holds a part of the answer; never empty."""
        return self.oracles or (self.context_id,)


@dataclass(frozen=True)
class Tally:
    """Counts of what was read and of what was dropped, by reason; nothing is skipped without a count here."""

    read: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Both counters with sorted keys and without zeros, ready for JSON."""
        return {"read": _positive(self.read), "dropped": _positive(self.dropped)}


def _positive(counter: Counter[str]) -> dict[str, int]:
    return {key: int(count) for key, count in sorted(counter.items()) if count}
