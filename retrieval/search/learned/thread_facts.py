"""Facts about the messages of a thread, as arrays, from which features of pairs of messages are computed.

All of them are found in one pass, so a thread of a hundred thousand messages costs a hundred thousand steps
and no more. Counts such as "messages of this author between two places" are two binary searches in a sorted
array of keys, see `EventList`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.corpus.types import Post
from retrieval.search.legs.names_in_text import name_position

_WORD_RUN = re.compile(r"\w+")
_LINK = re.compile(r"https?://|www\.", re.IGNORECASE)
_OPEN_QUESTION = re.compile(r"[?？؟;]\s*$")

#: Facts about the form of a single message, in the order of `form_of`.
FORM = ("question_mark", "ends_in_question_mark", "exclamation_mark", "link", "sign_first", "digits", "words")


@dataclass(frozen=True)
class EventList:
    """Events of several kinds at places of a thread, for counting them between two places.

    `keys` is int64, sorted: kind * `stride` + place for each event.
    """

    keys: np.ndarray
    stride: int

    @classmethod
    def of(cls, kinds: Sequence[int] | np.ndarray, places: Sequence[int] | np.ndarray, n: int) -> EventList:
        """Return the list of events.

        Args:
            kinds: kind of each event, from 0.
            places: place of each event, below `n`.
            n: number of messages of the thread.
        """
        stride = n + 1
        keys = np.asarray(kinds, dtype=np.int64) * stride + np.asarray(places, dtype=np.int64)
        return cls(np.sort(keys), stride)

    def count(self, kinds: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return int64[P]: for each row, the number of events of a kind at the places `low` to `high` - 1.

        Args:
            kinds: int64[P], the kind of each row; a negative kind has no events.
            low: int64[P], first place.
            high: int64[P], last place + 1.
        """
        base = kinds * self.stride
        found = np.searchsorted(self.keys, base + high) - np.searchsorted(self.keys, base + low)
        return np.where((kinds >= 0) & (high > low), found, 0)

    def last_before(self, kinds: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return int64[P]: the place of the last event of a kind before a place, or -1.

        Args:
            kinds: int64[P], the kind of each row; a negative kind has no events.
            places: int64[P].
        """
        if not len(self.keys):
            return np.full(len(kinds), -1, dtype=np.int64)
        at = np.searchsorted(self.keys, kinds * self.stride + places) - 1
        key = self.keys[np.maximum(at, 0)]
        known = (at >= 0) & (kinds >= 0) & (key // self.stride == kinds)
        return np.where(known, key % self.stride, -1)


@dataclass(frozen=True)
class ThreadFacts:
    """Facts about N messages of a thread by A authors. A place is an index of a message, in time order.

    An author counts as named only if he wrote before the message that names him, and nobody names himself.

    Attributes:
        author: int64[N], number of the author.
        n_authors: A.
        time: float64[N], seconds; NaN if unknown.
        addressed: int64[N], the author named at the start of the message, or -1.
        names: int64[N], how many authors the message names.
        form: float32[N, len(FORM)], facts about the form of the message.
        partner: int64[N], whom the author last named before this message, or -1.
        partner_after: int64[N], the same with this message.
        author_start: int64[N], the place of the author's first message.
        messages_of: events of author a: the messages of a.
        naming: events of author a: the messages that name a.
        addressing: events of author a: the messages that name a at their start.
        from_to: events of kind (a * A + b): the messages of a that name b.
        word_starts: int64[N + 1]. The distinct words of message p begin at `words[word_starts[p]]` and end
            before `words[word_starts[p + 1]]`.
        words: int64, the number of each word in the order of its first use, sorted within a message.
        word_idf: float64[words of the thread], inverse document frequency of each word.
        largest_idf: the largest of them, at least 1.
        run_starts: int64[N + 1], like `word_starts` for `runs`.
        runs: int64, numbers of the distinct pairs of neighbouring words, sorted within a message.
        cues: float32[N, C], 1 where the message has the C-th of the cue words.
    """

    author: np.ndarray
    n_authors: int
    time: np.ndarray
    addressed: np.ndarray
    names: np.ndarray
    form: np.ndarray
    partner: np.ndarray
    partner_after: np.ndarray
    author_start: np.ndarray
    messages_of: EventList
    naming: EventList
    addressing: EventList
    from_to: EventList
    word_starts: np.ndarray
    words: np.ndarray
    word_idf: np.ndarray
    largest_idf: float
    run_starts: np.ndarray
    runs: np.ndarray
    cues: np.ndarray

    def __len__(self) -> int:
        return len(self.author)


def thread_facts(
    posts: Sequence[Post],
    words_of: Callable[[str], Sequence[str]],
    idf: Callable[[Sequence[str]], np.ndarray],
    cues: Mapping[str, int],
) -> ThreadFacts:
    """Find the facts about all messages of a thread.

    Args:
        posts: the messages, in time order.
        words_of: splits a text into words.
        idf: returns the inverse document frequency float64[W] of W words.
        cues: number of each cue word.
    """
    n = len(posts)
    authors: dict[str, int] = {}
    author = np.array([authors.setdefault(post.author, len(authors)) for post in posts], dtype=np.int64)
    start = np.full(len(authors), n, dtype=np.int64)
    np.minimum.at(start, author, np.arange(n))
    texts = [post.text.casefold() for post in posts]
    named = _named(texts, author, list(authors), start)
    who, whom, where = (np.array(column, dtype=np.int64) for column in (named.by, named.whom, named.place))
    words = _Words(words_of)
    split = [words.numbers(post.text) for post in posts]
    # A pair of neighbours is one number: the words of a thread are far fewer than 2^31.
    width = len(words.known) + 1
    weights = idf(list(words.known))
    runs = [np.unique(row[:-1] * width + row[1:]) for row in split]
    distinct = [np.unique(row) for row in split]
    return ThreadFacts(
        author,
        len(authors),
        np.array([np.nan if post.time is None else post.time for post in posts], dtype=np.float64),
        named.addressed,
        np.bincount(where, minlength=n),
        np.array(
            [form_of(post.text, len(row)) for post, row in zip(posts, split, strict=True)], dtype=np.float32
        ),
        named.partner,
        named.partner_after,
        start[author],
        EventList.of(author, np.arange(n), n),
        EventList.of(whom, where, n),
        EventList.of(*_addressing(named.addressed), n),
        EventList.of(who * len(authors) + whom, where, n),
        _starts(distinct),
        np.concatenate(distinct) if distinct else np.zeros(0, dtype=np.int64),
        weights,
        float(weights.max(initial=1.0)),
        _starts(runs),
        np.concatenate(runs) if runs else np.zeros(0, dtype=np.int64),
        _cues(distinct, list(words.known), cues),
    )


def _forms(posts: Sequence[Post], split: Sequence[np.ndarray]) -> np.ndarray:
    forms = [form_of(post.text, len(row)) for post, row in zip(posts, split, strict=True)]
    return np.array(forms, dtype=np.float32).reshape(len(posts), len(FORM))


def form_of(text: str, n_words: int) -> tuple[float, ...]:
    """Return the facts of `FORM` about a text with `n_words` words."""
    return (
        float("?" in text or "？" in text or "؟" in text),
        float(_OPEN_QUESTION.search(text) is not None),
        float("!" in text[1:]),
        float(_LINK.search(text) is not None),
        # `!bot`, `/command`, `$ prompt`: talk with a machine.
        float(bool(text) and not text[0].isalnum() and text[0] not in "\"'([<@"),
        float(any(sign.isdigit() for sign in text)),
        float(np.log1p(n_words)),
    )


@dataclass(frozen=True)
class _Named:
    """Who names whom: event k is author `by[k]` naming author `whom[k]` at place `place[k]`."""

    by: list[int]
    whom: list[int]
    place: list[int]
    addressed: np.ndarray
    partner: np.ndarray
    partner_after: np.ndarray


def _named(texts: Sequence[str], author: np.ndarray, names: Sequence[str], start: np.ndarray) -> _Named:
    """Find the authors that each case-folded text names, in one pass over the words of the texts."""
    # A name can stand in a text as a whole word only if the first run of letters in the name is a whole run
    # of the text. So a look-up of the text's words finds all names that may be there.
    by_run: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        run = _WORD_RUN.search(name.casefold())
        by_run.setdefault(run[0] if run else "", []).append(number)
    out = _Named([], [], [], *np.full((3, len(texts)), -1, dtype=np.int64))
    partner: dict[int, int] = {}
    for place, text in enumerate(texts):
        own = int(author[place])
        out.partner[place] = partner.get(own, -1)
        maybe = [number for run in {*_WORD_RUN.findall(text), ""} for number in by_run.get(run, ())]
        found = []
        for number in maybe:
            if number == own or start[number] >= place:
                continue
            at = name_position(text, names[number])
            if at >= 0:
                found.append((at, number))
        # The order of a set does not reach the result.
        for at, number in sorted(found):
            out.by.append(own)
            out.whom.append(number)
            out.place.append(place)
            if at <= 1 and out.addressed[place] < 0:  # position 1 is `@name`
                out.addressed[place] = number
        if found:
            partner[own] = min(found)[1]
        out.partner_after[place] = partner.get(own, -1)
    return out


class _Words:
    """The words of a thread, numbered in the order of their first use."""

    def __init__(self, words_of: Callable[[str], Sequence[str]]) -> None:
        self._words_of = words_of
        self.known: dict[str, int] = {}

    def numbers(self, text: str) -> np.ndarray:
        """Return int64[W]: the numbers of the words of a text, in order."""
        known = self.known
        return np.array([known.setdefault(word, len(known)) for word in self._words_of(text)], dtype=np.int64)


def _addressing(addressed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.flatnonzero(addressed >= 0)
    return addressed[places], places


def _starts(rows: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


def _cues(distinct: Sequence[np.ndarray], known: Sequence[str], cues: Mapping[str, int]) -> np.ndarray:
    out = np.zeros((len(distinct), len(cues)), dtype=np.float32)
    number = np.array([cues.get(word, -1) for word in known], dtype=np.int64)
    for place, row in enumerate(distinct):
        found = number[row]
        out[place, found[found >= 0]] = 1.0
    return out
