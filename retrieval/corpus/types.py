"""What the readers yield: frozen values that do not depend on the file format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Post:
    """One post of a thread.

    Attributes:
        id: unique in its thread.
        author: name as it is shown.
        text: without HTML, quotelinks and quoted lines, with single spaces; it may be empty.
        parents: ids of the posts of the same thread that it answers, in the order of its links.
        row: line or position in its source.
        has_known_parents: False if nobody says whom it answers (an IRC line without annotation): such a post
            is a candidate for others, and no comment of its own.
        time: when it was written, in seconds since 1970; None if unknown.
    """

    id: str
    author: str
    text: str
    parents: tuple[str, ...] = ()
    row: int = 0
    has_known_parents: bool = True
    time: float | None = None


@dataclass(frozen=True)
class Thread:
    """Posts in time order; every one of them may be a parent.

    Attributes:
        id: unique in the corpus.
        posts: the posts.
        source: name of the file.
        row: line or position in it.
        split: "train" or "test" if the source says so, else "".
        time: when it began, in seconds since 1970; None if unknown.
    """

    id: str
    posts: tuple[Post, ...]
    source: str
    row: int = 0
    split: str = ""
    time: float | None = None


@dataclass(frozen=True)
class Table:
    """A table. The cells of `header` and `rows` are single lines; every row is as wide as the header."""

    id: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Document:
    """A document of a question corpus, or a chunk of one.

    Attributes:
        id: unique in the corpus.
        title: its title, may be empty.
        text: its text with single spaces.
        source: name of the file.
        row: row in the file, from 1.
        time: since when it is known, in seconds since 1970; None means always.
        parent: of a chunk, the id of the whole document, else "".
        start: of a chunk, its first character in the source's text.
        end: of a chunk, its last character there + 1.
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
        """The id by which the split is decided: that of the whole document."""
        return self.parent or self.id


@dataclass(frozen=True)
class Question:
    """A question about a context, which is a table or a document.

    Attributes:
        id: unique in the corpus.
        context_id: id of the context, the first one if there are several.
        text: the question.
        answers: the accepted answers.
        source: name of the file.
        row: row in the file, from 1.
        oracles: ids of all contexts that hold the answer, if they are several (HotpotQA's supporting facts).
        time: the time of the question, in seconds since 1970; None means after all documents.
        span: (first character, last + 1) of the answer in the document's source text, if the source names it.
        needs_all: whether all oracles together hold the answer; False if one of them is enough (chunks).
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
        """Ids of all contexts that hold a part of the answer; never empty."""
        return self.oracles or (self.context_id,)


@dataclass(frozen=True)
class Tally:
    """Counts of what was read, and of what was dropped by reason. Whatever is dropped is counted here."""

    read: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return both counters for JSON, with sorted keys and without zeros."""
        return {"read": _positive(self.read), "dropped": _positive(self.dropped)}


def _positive(counter: Counter[str]) -> dict[str, int]:
    # `int`, because a count may be a numpy number, which JSON does not know.
    return {key: int(count) for key, count in sorted(counter.items()) if count}
