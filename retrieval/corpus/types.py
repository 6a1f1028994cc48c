"""Types of the values that all readers return, independent of the file format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Post:
    """One post of a thread.

    Attributes:
        id: unique in its thread.
        author: displayed name.
        text: without HTML, quotelinks and quoted lines, with single spaces; it may be empty.
        parents: ids of the posts of the same thread that this post answers, in the order of its links.
        row: line or position in the source file.
        has_known_parents: False if the source does not say what the post answers (an IRC line without
            annotation). Such a post is a candidate for later comments, but is not used as a comment.
        time: time of writing, in seconds since 1970; None if unknown.
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
    """A thread: its posts in time order. Every post may be the parent of later posts.

    Attributes:
        id: unique in the corpus.
        posts: the posts.
        source: name of the file.
        row: line or position of the thread in the file.
        split: "train" or "test" if the source names the split, else "".
        time: time of its start, in seconds since 1970; None if unknown.
        links: annotated reply links (line, parent) of a log whose posts are named by line numbers, also those
            of lines that are no posts; a line that starts a conversation has a link to itself. Empty: what
            the posts say.
    """

    id: str
    posts: tuple[Post, ...]
    source: str
    row: int = 0
    split: str = ""
    time: float | None = None
    links: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of a question corpus.

    Attributes:
        id: unique in the corpus.
        header: the names of the columns, each one line of text.
        rows: the cells, each one line of text. Every row is as wide as the header.
        title: the caption, which may be empty.
    """

    id: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Document:
    """A document of a question corpus, or a chunk of one.

    Attributes:
        id: unique in the corpus.
        title: the title, which may be empty.
        text: the text with its line breaks.
        source: name of the file.
        row: row in the file, from 1.
        time: time from which the document exists, in seconds since 1970; None means always.
        parent: id of the whole document if this is a chunk, else "".
        start: first character of a chunk in the text of the source.
        end: last character of a chunk in the text of the source, + 1.
        sentences: places of the sentences in the text, if the source numbers them: (first character, last +
            1) of each, (-1, -1) for one that is not in this chunk.
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
    sentences: tuple[tuple[int, int], ...] = ()

    @property
    def context_id(self) -> str:
        """The id that decides the split, which is the id of the whole document."""
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
        oracles: ids of all contexts that hold the answer, if there are several (HotpotQA's supporting facts).
        time: the time of the question, in seconds since 1970; None means after all documents.
        span: (first character, last + 1) of the answer in the document's source text, if the source names it.
        needs_all: whether all oracles together hold the answer; False if one of them is enough (chunks).
        facts: the sentences that support the answer, as `supporting_facts.as_texts` writes them; empty if the
            source does not name them.
        canonical: canonical form of each answer about a table (WikiTableQuestions' `targetCanon`); empty if
            the source does not have them.
        reasoned: an answer that quotes, reasons and ends in the short answer; "" if the source has none.
        synthetic: whether a model made the question.
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
    facts: tuple[str, ...] = ()
    canonical: tuple[str, ...] = ()
    reasoned: str = ""
    synthetic: bool = False

    @property
    def oracle_ids(self) -> tuple[str, ...]:
        """Ids of all contexts that hold a part of the answer. There is always at least one."""
        return self.oracles or (self.context_id,)


@dataclass(frozen=True)
class Tally:
    """Counts of what a reader reads (`read`) and of what it drops, by reason (`dropped`)."""

    read: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return both counters as JSON values, with sorted keys and without zeros."""
        return {"read": _positive(self.read), "dropped": _positive(self.dropped)}


def _positive(counter: Counter[str]) -> dict[str, int]:
    # `int`, because a count may be a numpy number, which `json` cannot write.
    return {key: int(count) for key, count in sorted(counter.items()) if count}
