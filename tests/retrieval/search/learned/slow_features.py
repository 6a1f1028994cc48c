"""The slow reference of the features: each one from its definition, message by message, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from retrieval.corpus.types import Post
from retrieval.search.legs.names_in_text import name_position

#: Largest inverse document frequency of a word.
LARGEST = 2.5


@dataclass
class SlowThread:
    """A thread, its words, and the inverse document frequency of a word."""

    posts: Sequence[Post]
    words_of: Callable[[str], Sequence[str]]
    idf: Callable[[str], float]

    def __post_init__(self) -> None:
        self.authors = [post.author for post in self.posts]
        self.order = list(dict.fromkeys(self.authors))
        self.named = [self._named(place) for place in range(len(self.posts))]
        self.words = [set(self.words_of(post.text)) for post in self.posts]
        self.runs = [set(pairwise(self.words_of(post.text))) for post in self.posts]

    def _named(self, place: int) -> list[tuple[int, str]]:
        """(position, author) of all whom a message names and who wrote before, the first named first."""
        text = self.posts[place].text.casefold()
        before = set(self.authors[:place]) - {self.authors[place]}
        found = [(name_position(text, author), self.order.index(author), author) for author in before]
        return [(at, author) for at, _, author in sorted(found) if at >= 0]

    def names(self, place: int, author: str) -> bool:
        return any(named == author for _, named in self.named[place])

    def addressed(self, place: int) -> str | None:
        return next((author for at, author in self.named[place] if at <= 1), None)

    def partner(self, author: str, end: int) -> str | None:
        """Whom an author named last in the messages before `end`."""
        for place in range(end - 1, -1, -1):
            if self.authors[place] == author and self.named[place]:
                return self.named[place][0][1]
        return None

    def last(self, author: str, end: int) -> int:
        return max((p for p in range(end) if self.authors[p] == author), default=-1)

    def last_naming(self, author: str, end: int) -> int:
        return max((p for p in range(end) if self.names(p, author)), default=-1)

    def weight(self, words: set[str]) -> float:
        return sum(self.idf(word) ** 2 for word in words)

    def cosine(self, one: set[str], other: set[str]) -> float:
        return self.weight(one & other) / math.sqrt(max(self.weight(one) * self.weight(other), 1e-12))

    def pair(self, i: int, c: int, low: int) -> dict[str, float]:
        """The features of message `i` with candidate `c`; the candidates begin at `low`."""
        me, you = self.authors[i], self.authors[c]
        between = range(c + 1, i)
        newest, own, naming = self.last(you, i), self.last(me, i), self.last_naming(me, i)
        one, other = self.posts[i].time, self.posts[c].time
        timed = one is not None and other is not None
        seconds = max(one - other, 0) if one is not None and other is not None else 0
        to = self.addressed(c)
        of_you = sum(self.authors[p] == you for p in between)
        own_since = sum(self.authors[p] == me for p in between)
        others = i - c - 1 - of_you - (own_since if me != you else 0)

        def count(by: str, whom: str, places: range) -> float:
            return half_log(sum(self.authors[p] == by and self.names(p, whom) for p in places))

        return {
            "log_distance": math.log(i - c),
            "is_previous": i - c == 1,
            "is_second": i - c == 2,
            "is_opening": c == 0,
            "log_place": half_log(c),
            "log_time": math.log1p(seconds / 10) / 2,
            "time_known": timed,
            "same_minute": timed and seconds < 60,
            "same_author": me == you,
            "newest_of_author": newest == c,
            "newest_of_own": me == you and own == c,
            "log_messages_of_author_since": half_log(of_you),
            "log_own_messages_since": half_log(own_since),
            "log_others_since": half_log(others),
            "first_of_author_since_own": c > own and self.last(you, c) < own,
            "last_of_run": c + 1 == i or self.authors[c + 1] != you,
            "first_of_run": c == 0 or self.authors[c - 1] != you,
            "first_of_author": you not in self.authors[:c],
            "named": self.names(i, you),
            "addressed": self.addressed(i) == you,
            "newest_of_named": self.names(i, you) and newest == c,
            "names_me": self.names(c, me),
            "addresses_me": to == me,
            "newest_that_names_me": naming == c,
            "addresses_other": to is not None and to != me,
            "names_nobody": not self.named[c],
            "addresses_the_same": to is not None and to == self.addressed(i),
            "author_is_partner": self.partner(me, i) == you,
            "partner_of_author": self.partner(you, c) == me,
            "partner_of_author_now": self.partner(you, newest + 1) == me,
            "author_named_me_last": naming >= 0 and self.authors[naming] == you,
            "log_addressed_since": half_log(sum(self.addressed(p) == you for p in between)),
            "log_i_named_since": count(me, you, between),
            "log_named_me_since": count(you, me, between),
            "log_i_named_before": count(me, you, range(low, c + 1)),
            "log_named_me_before": count(you, me, range(low, c)),
            **self._overlap(i, c, low),
        }

    def _overlap(self, i: int, c: int, low: int) -> dict[str, float]:
        me, mine = self.authors[i], self.words[i]
        cosines = {p: self.cosine(mine, self.words[p]) for p in range(low, i)}
        rarest = {p: max((self.idf(w) for w in mine & self.words[p]), default=0.0) for p in range(low, i)}
        best = max(rarest.values())
        top = [p for p in rarest if rarest[p] == best and best > 0]
        rank = sorted(cosines, key=lambda p: (-cosines[p], -p)).index(c)
        first = last = c
        while first > low and self.authors[first - 1] == self.authors[c]:
            first -= 1
        while last + 1 < i and self.authors[last + 1] == self.authors[c]:
            last += 1
        own = set().union(*(self.words[p] for p in range(low, i) if self.authors[p] == me))
        return {
            "cosine": cosines[c],
            "cosine_rank": 1 / (1 + rank) if cosines[c] > 0 else 0,
            "log_shared_words": half_log(len(mine & self.words[c])),
            "rarest_shared": rarest[c] / LARGEST,
            "shares_rarest_of_all": c in top,
            "newest_with_rarest": c == top[-1] if top else False,
            "first_with_rarest": c == top[0] if top else False,
            "log_shared_runs": half_log(len(self.runs[i] & self.runs[c])),
            "author_cosine": max(v for p, v in cosines.items() if self.authors[p] == self.authors[c]),
            "run_cosine": max(cosines[p] for p in range(first, last + 1)),
            "own_words_cosine": 0.0 if self.authors[c] == me else self.cosine(own, self.words[c]),
            "shared_of_message": self.weight(mine & self.words[c]) / max(self.weight(mine), 1e-12),
        }

    def message(self, i: int, low: int) -> dict[str, float]:
        """The features of message `i` itself, without those of its form."""
        me = self.authors[i]
        own, naming = self.last(me, i), self.last_naming(me, i)
        now, before = self.posts[i].time, self.posts[i - 1].time
        gap = max(now - before, 0) if now is not None and before is not None else 0
        window = range(low, i)
        shared = [max((self.idf(w) for w in self.words[i] & self.words[p]), default=0.0) for p in window]
        return {
            "log_time_since_previous": math.log1p(gap / 10) / 2,
            "log_messages_before": half_log(self.authors[:i].count(me)),
            "log_distance_to_own": math.log(i - own) if own >= low else 6.0,
            "own_in_window": own >= low,
            "log_authors_in_window": half_log(len({self.authors[p] for p in window})),
            "addresses": self.addressed(i) is not None,
            "log_named": half_log(len(self.named[i])),
            "log_distance_to_naming_me": math.log(i - naming) if naming >= low else 6.0,
            "has_partner": self.partner(me, i) is not None,
            "best_cosine": max(self.cosine(self.words[i], self.words[p]) for p in window),
            "best_rarest": max(shared) / LARGEST,
            "log_candidates": half_log(i - low),
            "window_has_opening": low == 0,
        }


def half_log(count: float) -> float:
    return math.log1p(count) / 2
