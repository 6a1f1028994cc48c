"""Features of a message, and of a message with each earlier message that it may answer, its candidates.

Features of structure, form and names are computed for many pairs at once. Each operation treats a pair on its
own, so a feature does not depend on which pairs are computed together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrieval.search.learned.thread_facts import FORM, ThreadFacts
from retrieval.search.legs.leg import LegRanking

#: Cue words of a message, and those among them that are features of its candidates too.
MESSAGE_CUES = 128
CANDIDATE_CUES = 64
#: Legs whose rankings follow from the features of structure. Computed one by one, they would take longer than
#: all features together.
IMPLIED_LEGS = frozenset({"recency", "mention", "opening", "addressed_me", "same_author", "partner"})
#: log(distance) of a message that is not in the window.
FAR = 6.0

#: Features of a candidate by group. The report shows what each group gives.
PAIR_GROUPS: dict[str, tuple[str, ...]] = {
    "distance": ("log_distance", "is_previous", "is_second", "is_opening", "log_place"),
    "time": ("log_time", "time_known", "same_minute"),
    "authors": (
        "same_author",
        "newest_of_author",
        "newest_of_own",
        "log_messages_of_author_since",
        "log_own_messages_since",
        "log_others_since",
        "first_of_author_since_own",
        "last_of_run",
        "first_of_run",
        "first_of_author",
    ),
    "mentions": (
        "named",
        "addressed",
        "newest_of_named",
        "names_me",
        "addresses_me",
        "newest_that_names_me",
        "addresses_other",
        "names_nobody",
        "addresses_the_same",
        "author_is_partner",
        "partner_of_author",
        "partner_of_author_now",
        "author_named_me_last",
        "log_addressed_since",
        "log_i_named_since",
        "log_named_me_since",
        "log_i_named_before",
        "log_named_me_before",
    ),
    "overlap": (
        "cosine",
        "cosine_rank",
        "log_shared_words",
        "rarest_shared",
        "shares_rarest_of_all",
        "newest_with_rarest",
        "first_with_rarest",
        "log_shared_runs",
        "author_cosine",
        "run_cosine",
        "own_words_cosine",
        "shared_of_message",
    ),
}
#: Features of the message itself, by group.
MESSAGE_GROUPS: dict[str, tuple[str, ...]] = {
    "time": ("log_time_since_previous",),
    "authors": ("log_messages_before", "log_distance_to_own", "own_in_window", "log_authors_in_window"),
    "mentions": ("addresses", "log_named", "log_distance_to_naming_me", "has_partner"),
    "overlap": ("best_cosine", "best_rarest"),
    "distance": ("log_candidates", "window_has_opening"),
}


def counted(values: np.ndarray) -> np.ndarray:
    """Return log(1 + n) / 2 of counts, which keeps them near the size of the other features."""
    return np.log1p(values) / 2


@dataclass(frozen=True)
class Windows:
    """The candidates of M messages: message m has the candidates `low[m]` to `place[m]` - 1.

    The P pairs are those of the first message, then those of the second, and so on.
    """

    place: np.ndarray
    low: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """int64[M]: the number of candidates of each message."""
        return self.place - self.low

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (number of the message, place of the candidate), each int64[P]."""
        sizes = self.sizes
        row = np.repeat(np.arange(len(sizes)), sizes)
        offset = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return row, self.low[row] + offset


def structure(facts: ThreadFacts, windows: Windows) -> dict[str, np.ndarray]:
    """Return the features of distance, time, authors and mentions of all pairs, each [P]."""
    row, c = windows.pairs()
    i, low = windows.place[row], windows.low[row]
    me, you = facts.author[i], facts.author[c]
    distance = i - c
    gap = facts.time[i] - facts.time[c]
    timed = ~np.isnan(gap)
    seconds = np.where(timed, np.maximum(gap, 0), 0)
    n_authors = facts.n_authors
    i_to_you = facts.from_to.count(me * n_authors + you, low, i + 1)
    i_now = facts.from_to.count(me * n_authors + you, i, i + 1)
    named = i_now > 0
    addressed = facts.addressed[i] == you
    names_me = facts.from_to.count(you * n_authors + me, c, c + 1) > 0
    newest_of_you = facts.messages_of.last_before(you, i)
    newest = newest_of_you == c
    own = facts.messages_of.last_before(me, i)
    naming = facts.naming.last_before(me, i)
    of_you = facts.messages_of.count(you, c + 1, i)
    own_since = facts.messages_of.count(me, c + 1, i)
    to = facts.addressed[c]
    next_author = facts.author[np.minimum(c + 1, len(facts) - 1)]
    previous_author = np.where(c > 0, facts.author[np.maximum(c - 1, 0)], -1)
    i_since = facts.from_to.count(me * n_authors + you, c + 1, i)
    you_since = facts.from_to.count(you * n_authors + me, c + 1, i)
    return {
        "log_distance": np.log(distance),
        "is_previous": distance == 1,
        "is_second": distance == 2,
        "is_opening": c == 0,
        "log_place": counted(c),
        "log_time": np.log1p(seconds / 10) / 2,
        "time_known": timed,
        "same_minute": timed & (seconds < 60),
        "same_author": me == you,
        "newest_of_author": newest,
        "newest_of_own": newest & (me == you),
        "log_messages_of_author_since": counted(of_you),
        "log_own_messages_since": counted(own_since),
        "log_others_since": counted(np.where(me == you, i - c - 1 - of_you, i - c - 1 - of_you - own_since)),
        "first_of_author_since_own": (c > own) & (facts.messages_of.last_before(you, c) < own),
        "last_of_run": (next_author != you) | (c + 1 == i),
        "first_of_run": previous_author != you,
        "first_of_author": facts.author_start[c] == c,
        "named": named,
        "addressed": addressed,
        "newest_of_named": named & newest,
        "names_me": names_me,
        "addresses_me": to == me,
        "newest_that_names_me": naming == c,
        "addresses_other": (to >= 0) & (to != me),
        "names_nobody": facts.names[c] == 0,
        "addresses_the_same": (to >= 0) & (to == facts.addressed[i]),
        "author_is_partner": facts.partner[i] == you,
        "partner_of_author": facts.partner[c] == me,
        "partner_of_author_now": facts.partner_after[newest_of_you] == me,
        "author_named_me_last": (naming >= 0) & (facts.author[naming] == you),
        "log_addressed_since": counted(facts.addressing.count(you, c + 1, i)),
        "log_i_named_since": counted(i_since),
        "log_named_me_since": counted(you_since),
        "log_i_named_before": counted(i_to_you - i_now - i_since),
        "log_named_me_before": counted(facts.from_to.count(you * n_authors + me, low, c)),
    }


def message_structure(facts: ThreadFacts, windows: Windows) -> dict[str, np.ndarray]:
    """Return the features of structure of the messages alone, each [M]."""
    i, low = windows.place, windows.low
    me = facts.author[i]
    before = np.maximum(i - 1, 0)
    gap = np.where(i > 0, facts.time[i] - facts.time[before], np.nan)
    own = facts.messages_of.last_before(me, i)
    naming = facts.naming.last_before(me, i)
    row, c = windows.pairs()
    newest = facts.messages_of.last_before(facts.author[c], i[row]) == c
    return {
        "log_time_since_previous": np.log1p(np.where(np.isnan(gap), 0, np.maximum(gap, 0)) / 10) / 2,
        "log_messages_before": counted(facts.messages_of.count(me, np.zeros_like(i), i)),
        "log_distance_to_own": np.where(own >= low, np.log(np.maximum(i - own, 1)), FAR),
        "own_in_window": own >= low,
        "log_authors_in_window": counted(np.bincount(row[newest], minlength=len(i))),
        "addresses": facts.addressed[i] >= 0,
        "log_named": counted(facts.names[i]),
        "log_distance_to_naming_me": np.where(naming >= low, np.log(np.maximum(i - naming, 1)), FAR),
        "has_partner": facts.partner[i] >= 0,
        "log_candidates": counted(i - low),
        "window_has_opening": low == 0,
    }


def overlap(facts: ThreadFacts, place: int, low: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the features of shared words of one message: those of its pairs, each [N], and its own.

    Args:
        facts: facts about the thread.
        place: place of the message.
        low: place of its first candidate.
    """
    n = place - low
    idf = facts.word_idf
    mine = facts.words[facts.word_starts[place] : facts.word_starts[place + 1]]
    starts = facts.word_starts[low : place + 1]
    theirs = facts.words[starts[0] : starts[-1]]
    owner = np.repeat(np.arange(n), np.diff(starts))
    shared = np.isin(theirs, mine)
    weight = idf[theirs]
    hit_owner, hit_idf = owner[shared], weight[shared]
    dot = np.bincount(hit_owner, weights=hit_idf**2, minlength=n)
    norm = np.bincount(owner, weights=weight**2, minlength=n)
    own_norm = float((idf[mine] ** 2).sum())
    cosine = dot / np.sqrt(np.maximum(norm * own_norm, 1e-12))
    rarest = np.zeros(n)
    np.maximum.at(rarest, hit_owner, hit_idf)
    best = rarest.max(initial=0.0)
    top = np.flatnonzero((rarest == best) & (best > 0))
    runs = facts.runs[facts.run_starts[low] : facts.run_starts[place]]
    run_owner = np.repeat(np.arange(n), np.diff(facts.run_starts[low : place + 1]))
    own_runs = facts.runs[facts.run_starts[place] : facts.run_starts[place + 1]]
    shared_runs = np.bincount(run_owner[np.isin(runs, own_runs)], minlength=n)
    authors = facts.author[low:place]
    by_author = np.zeros(facts.n_authors)
    np.maximum.at(by_author, authors, cosine)
    run = np.concatenate([[0], np.cumsum(authors[1:] != authors[:-1])]) if n else np.zeros(0, dtype=np.int64)
    by_run = np.zeros(n)
    np.maximum.at(by_run, run, cosine)
    own_words = np.unique(theirs[authors[owner] == facts.author[place]])
    of_own = np.isin(theirs, own_words) & (authors[owner] != facts.author[place])
    own_dot = np.bincount(owner[of_own], weights=weight[of_own] ** 2, minlength=n)
    own_total = max(float((idf[own_words] ** 2).sum()), 1e-12)
    order = np.lexsort((-np.arange(n), -cosine))
    ranks = np.empty(n)
    ranks[order] = np.arange(n)
    flags = {
        name: np.zeros(n) for name in ("shares_rarest_of_all", "newest_with_rarest", "first_with_rarest")
    }
    if len(top):
        flags["shares_rarest_of_all"][top] = 1
        flags["newest_with_rarest"][top[-1]] = 1
        flags["first_with_rarest"][top[0]] = 1
    pairs = {
        "cosine": cosine,
        "cosine_rank": np.where(cosine > 0, 1 / (1 + ranks), 0),
        "log_shared_words": counted(np.bincount(hit_owner, minlength=n)),
        "rarest_shared": rarest / facts.largest_idf,
        **flags,
        "log_shared_runs": counted(shared_runs),
        "author_cosine": by_author[authors],
        "run_cosine": by_run[run],
        "own_words_cosine": own_dot / np.sqrt(np.maximum(norm * own_total, 1e-12)),
        "shared_of_message": dot / max(own_norm, 1e-12),
    }
    return pairs, {
        "best_cosine": float(cosine.max(initial=0.0)),
        "best_rarest": float(best) / facts.largest_idf,
    }


def leg_features(rankings: Mapping[str, LegRanking], n: int) -> dict[str, np.ndarray]:
    """Return three features of each leg, each [N]: reciprocal rank, score, and score divided by the best one.

    Args:
        rankings: ranking of each leg by name.
        n: number of candidates.
    """
    out: dict[str, np.ndarray] = {}
    for name, ranking in rankings.items():
        ranked = ranking.counted()
        rank, score = np.zeros(n), np.zeros(n)
        rank[ranked.places] = 1 / (1.0 + np.arange(len(ranked.places)))
        # A leg without scores has its reciprocal ranks as scores.
        score[ranked.places] = rank[ranked.places] if ranked.scores is None else ranked.scores
        out[f"{name}_rank"] = rank
        out[f"{name}_score"] = counted(score)
        out[f"{name}_share"] = score / max(float(score.max(initial=0.0)), 1e-12)
    return out


@dataclass(frozen=True)
class Features:
    """Features of M messages and of their P pairs, in the order of `FeatureSpace`.

    Attributes:
        pairs: float32[P, F].
        messages: float32[M, Q].
    """

    pairs: np.ndarray
    messages: np.ndarray


@dataclass(frozen=True)
class FeatureSpace:
    """The names of all features, in order.

    `legs` are the legs that are features of their own, and `cues` the cue words, the most frequent one first.
    """

    legs: tuple[str, ...]
    cues: tuple[str, ...]

    @cached_property
    def cue_numbers(self) -> dict[str, int]:
        """The number of each cue word."""
        return {word: number for number, word in enumerate(self.cues)}

    @cached_property
    def pair_groups(self) -> dict[str, str]:
        """The group of each feature of a pair by its name, in order."""
        found = {name: group for group, names in PAIR_GROUPS.items() for name in names}
        found |= {f"{leg}_{part}": leg for leg in self.legs for part in ("rank", "score", "share")}
        found |= {f"candidate_{name}": "form" for name in FORM}
        return found | {f"candidate_word_{word}": "words" for word in self.cues[:CANDIDATE_CUES]}

    @cached_property
    def message_groups(self) -> dict[str, str]:
        """The group of each feature of a message by its name, in order."""
        found = {name: group for group, names in MESSAGE_GROUPS.items() for name in names}
        found |= {f"best_{leg}": leg for leg in self.legs}
        found |= {f"message_{name}": "form" for name in FORM}
        return found | {f"message_word_{word}": "words" for word in self.cues}

    def features(
        self, facts: ThreadFacts, windows: Windows, rankings: Sequence[Mapping[str, LegRanking]]
    ) -> Features:
        """Compute the features of messages of one thread.

        Args:
            facts: facts about the thread, with the cue words of this space.
            windows: M messages and their candidates.
            rankings: rankings of `legs` of each message.
        """
        sizes = windows.sizes
        _, candidate = windows.pairs()
        found = [overlap(facts, *at) for at in zip(windows.place.tolist(), windows.low.tolist(), strict=True)]
        shared = [pairs for pairs, _ in found]
        by_leg = [leg_features(given, int(n)) for given, n in zip(rankings, sizes, strict=True)]
        pairs = structure(facts, windows) | _joined(shared) | _joined(by_leg)
        messages = message_structure(facts, windows) | {
            name: np.array([own[name] for _, own in found]) for name in MESSAGE_GROUPS["overlap"]
        }
        for leg in self.legs:
            messages[f"best_{leg}"] = np.array([legs[f"{leg}_score"].max(initial=0.0) for legs in by_leg])
        return Features(
            _columns(
                [pairs[name] for name in self.pair_groups if name in pairs],
                [facts.form[candidate], facts.cues[candidate, :CANDIDATE_CUES]],
            ),
            _columns(
                [messages[name] for name in self.message_groups if name in messages],
                [facts.form[windows.place], facts.cues[windows.place]],
            ),
        )


def _joined(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join arrays by name, message after message."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _columns(single: Sequence[np.ndarray], blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return float32: the single columns, then the blocks of columns."""
    return np.column_stack([*(np.asarray(column, dtype=np.float32) for column in single), *blocks])
