"""Facts about the messages of a thread, as arrays, from which features of pairs of messages are computed.

All of them are found in one pass, so a thread of a hundred thousand messages costs a hundred thousand steps
and no more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple, Protocol

import numpy as np

from retrieval.corpus.types import Post
from retrieval.search.legs.names_in_text import name_position

_WORD_RUN = re.compile(r"\w+")
_LINK = re.compile(r"https?://|www\.", re.IGNORECASE)
_DIGIT = re.compile(r"\d")
_OPEN_QUESTION = re.compile(r"[?？؟;]\s*$")

#: Facts about the form of a single message, in the order of `form_of`.
FORM = ("question_mark", "ends_in_question_mark", "exclamation_mark", "link", "sign_first", "digits", "words")


class WordWeights(Protocol):
    """The inverse document frequencies of the words of a corpus."""

    @property
    def largest(self) -> float:
        """The largest that a word of the corpus has, above zero."""
        ...

    def of(self, words: Sequence[str]) -> np.ndarray:
        """Return float64[W], those of W words; a word that the corpus lacks has one too."""
        ...


class ThreadFacts(NamedTuple):
    """Facts about N messages of a thread by A authors. A place is an index of a message, in time order.

    An author counts as named only if he wrote before the message that names him, and nobody names himself.
    It is a named tuple, because compiled functions take it as one argument.

    Attributes:
        author: int64[N], number of the author.
        n_authors: A.
        time: float64[N], seconds; NaN if unknown.
        previous: int64[N], the place of the author's message before, or -1.
        messages_before: int64[N], how many messages the author wrote before.
        addressed: int64[N], the author named at the start of the message, or -1.
        named_starts: int64[N + 1]. The authors that message p names begin at `named[named_starts[p]]` and end
            before `named[named_starts[p + 1]]`.
        named: int64, number of each named author.
        partner: int64[N], whom the author last named before this message, or -1.
        partner_after: int64[N], the same with this message.
        last_naming: int64[N], the place of the last message before that names the author, or -1.
        word_starts: int64[N + 1], like `named_starts` for `words`.
        words: int64, numbers of the distinct words, in the order of their first use, sorted within a message.
        word_idf: float64[words of the thread], inverse document frequency of each word.
        largest_idf: the largest that a word of the corpus has.
        norm: float64[N], the sum of the squares of `word_idf` over the distinct words.
        run_starts: int64[N + 1], like `named_starts` for `runs`.
        runs: int64, numbers of the distinct pairs of neighbouring words, sorted within a message.
        alone: float32[N, len(FORM) + C], facts about the form of the message, then 1 where it has the c-th of
            the cue words.
    """

    author: np.ndarray
    n_authors: int
    time: np.ndarray
    previous: np.ndarray
    messages_before: np.ndarray
    addressed: np.ndarray
    named_starts: np.ndarray
    named: np.ndarray
    partner: np.ndarray
    partner_after: np.ndarray
    last_naming: np.ndarray
    word_starts: np.ndarray
    words: np.ndarray
    word_idf: np.ndarray
    largest_idf: float
    norm: np.ndarray
    run_starts: np.ndarray
    runs: np.ndarray
    alone: np.ndarray


def thread_facts(
    posts: Sequence[Post],
    words_of: Callable[[str], Sequence[str]],
    idf: WordWeights,
    cues: Mapping[str, int],
    words_from: int = 0,
) -> ThreadFacts:
    """Find the facts about all messages of a thread. Those of a message do not depend on later ones.

    Args:
        posts: the messages, in time order.
        words_of: splits a text into words.
        idf: gives the inverse document frequencies of words.
        cues: number of each cue word.
        words_from: place of the first message whose words and form are wanted; those before it have none.
    """
    authors: dict[str, int] = {}
    author = np.array([authors.setdefault(post.author, len(authors)) for post in posts], dtype=np.int64)
    previous, before = _earlier(author)
    named = _named([post.text.casefold() for post in posts], author, list(authors))
    words = _Words(words_of)
    split = [words.numbers(post.text) if k >= words_from else [] for k, post in enumerate(posts)]
    weights = idf.of(list(words.known))
    word_starts, flat = _flat([sorted(set(row)) for row in split])
    owner = np.repeat(np.arange(len(posts)), np.diff(word_starts))
    # As float64: without any word, bincount returns whole numbers, for which all code would be compiled anew.
    norm = np.bincount(owner, weights=weights[flat] ** 2, minlength=len(posts)).astype(np.float64)
    # A pair of neighbours is one number: the words of a thread are far fewer than 2^31.
    width = len(words.known) + 1
    runs = [sorted({one * width + next_one for one, next_one in pairwise(row)}) for row in split]
    cue_of = np.array([cues.get(word, -1) for word in words.known], dtype=np.int64)[flat]
    alone = np.zeros((len(posts), len(FORM) + len(cues)), dtype=np.float32)
    alone[owner[cue_of >= 0], len(FORM) + cue_of[cue_of >= 0]] = 1
    for place in range(words_from, len(posts)):
        alone[place, : len(FORM)] = form_of(posts[place].text, len(split[place]))
    return ThreadFacts(
        author,
        len(authors),
        np.array([np.nan if post.time is None else post.time for post in posts], dtype=np.float64),
        previous,
        before,
        named.addressed,
        *_flat(named.authors),
        named.partner,
        named.partner_after,
        named.last_naming,
        word_starts,
        flat,
        weights,
        idf.largest,
        norm,
        *_flat(runs),
        alone,
    )


def _earlier(author: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of the author's message before each message, or -1, and the number of all of them."""
    previous, before = np.full(len(author), -1, dtype=np.int64), np.zeros(len(author), dtype=np.int64)
    last: dict[int, int] = {}
    for place, number in enumerate(author.tolist()):
        found = last.get(number, -1)
        previous[place], before[place] = found, before[found] + 1 if found >= 0 else 0
        last[number] = place
    return previous, before


def form_of(text: str, n_words: int) -> tuple[float, ...]:
    """Return the facts of `FORM` about a text with `n_words` words."""
    return (
        float("?" in text or "？" in text or "؟" in text),
        float(_OPEN_QUESTION.search(text) is not None),
        float("!" in text[1:]),
        float(_LINK.search(text) is not None),
        # `!bot`, `/command`, `$ prompt`: talk with a machine.
        float(bool(text) and not text[0].isalnum() and text[0] not in "\"'([<@"),
        float(_DIGIT.search(text) is not None),
        float(np.log1p(n_words)),
    )


@dataclass(frozen=True)
class _Named:
    """Who names whom: the authors that each message names, and what follows from them (see `ThreadFacts`)."""

    authors: list[list[int]]
    addressed: np.ndarray
    partner: np.ndarray
    partner_after: np.ndarray
    last_naming: np.ndarray


def _named(texts: Sequence[str], author: np.ndarray, names: Sequence[str]) -> _Named:
    """Find the authors that each case-folded text names, in one pass over the words of the texts."""
    # A name can stand in a text as a whole word only if the first run of letters in the name is a whole run
    # of the text. So a look-up of the text's words finds all names that may be there.
    by_run: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        run = _WORD_RUN.search(name.casefold())
        by_run.setdefault(run[0] if run else "", []).append(number)
    out = _Named([], *(np.full(len(texts), -1, dtype=np.int64) for _ in range(4)))
    wrote: set[int] = set()
    partner: dict[int, int] = {}
    naming: dict[int, int] = {}
    for place, text in enumerate(texts):
        own = int(author[place])
        out.partner[place], out.last_naming[place] = partner.get(own, -1), naming.get(own, -1)
        maybe = [number for run in by_run.keys() & {*_WORD_RUN.findall(text), ""} for number in by_run[run]]
        found = []
        for number in maybe:
            at = name_position(text, names[number]) if number != own and number in wrote else -1
            if at >= 0:
                found.append((at, number))
        # The order of a set does not reach the result.
        found.sort()
        out.authors.append([number for _, number in found])
        naming |= {number: place for _, number in found}
        if found:
            at, first = found[0]
            partner[own] = first
            if at <= 1:  # position 1 is `@name`
                out.addressed[place] = first
        out.partner_after[place] = partner.get(own, -1)
        wrote.add(own)
    return out


class _Words:
    """The words of a thread, numbered in the order of their first use."""

    def __init__(self, words_of: Callable[[str], Sequence[str]]) -> None:
        self._words_of = words_of
        self.known: dict[str, int] = {}

    def numbers(self, text: str) -> list[int]:
        """Return the numbers of the words of a text, in order."""
        known = self.known
        return [known.setdefault(word, len(known)) for word in self._words_of(text)]


def _flat(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each row begins and the last one ends, and all rows as one array of int64."""
    starts = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return starts, np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(starts[-1]))
