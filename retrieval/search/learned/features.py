"""Features of a message, and of a message with each earlier message that it may answer, its candidates.

The features of many messages are computed at once, and do not depend on which ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrieval.search.learned.pair_features import (
    N_PAIR,
    OF_CANDIDATES,
    PAIR_GROUPS,
    fill_leg,
    fill_pairs,
)
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


def message_structure(facts: ThreadFacts, windows: Windows) -> dict[str, np.ndarray]:
    """Return the features of the messages alone that need none of their candidates, each [M]."""
    i, low = windows.place, windows.low
    before = np.maximum(i - 1, 0)
    gap = np.where(i > 0, facts.time[i] - facts.time[before], np.nan)
    own, naming = facts.previous[i], facts.last_naming[i]
    return {
        "log_time_since_previous": np.log1p(np.where(np.isnan(gap), 0, np.maximum(gap, 0)) / 10) / 2,
        "log_messages_before": counted(facts.messages_before[i]),
        "log_distance_to_own": np.where(own >= low, np.log(np.maximum(i - own, 1)), FAR),
        "own_in_window": own >= low,
        "addresses": facts.addressed[i] >= 0,
        "log_named": counted(facts.named_starts[i + 1] - facts.named_starts[i]),
        "log_distance_to_naming_me": np.where(naming >= low, np.log(np.maximum(i - naming, 1)), FAR),
        "has_partner": facts.partner[i] >= 0,
        "log_candidates": counted(i - low),
        "window_has_opening": low == 0,
    }


def leg_scores(ranking: LegRanking, n: int) -> np.ndarray:
    """Return float64[n]: the scores of a leg, 0 for candidates that it does not rank.

    A leg without scores has its reciprocal ranks as scores.
    """
    out, ranked = np.zeros(n), ranking.counted()
    out[ranked.places] = 1 / (1.0 + np.arange(len(ranked.places))) if ranked.scores is None else ranked.scores
    return out


@dataclass(frozen=True)
class Features:
    """Features of M messages and of their P pairs, in the order of `FeatureSpace`.

    Attributes:
        core: float32[P, C], the features of the pairs but those of the candidate alone.
        candidate: int64[P], the candidate of each pair.
        alone: float32[N, A], what depends on the candidate alone, of every message of the thread.
        messages: float32[M, Q].
    """

    core: np.ndarray
    candidate: np.ndarray
    alone: np.ndarray
    messages: np.ndarray

    @property
    def pairs(self) -> np.ndarray:
        """float32[P, F]: the features of all pairs."""
        return self.of_pairs(np.arange(len(self.core)))

    def of_pairs(self, rows: np.ndarray) -> np.ndarray:
        """Return float32[..., F]: the features of pairs by number, int64[...]."""
        return np.concatenate([self.core[rows], self.alone[self.candidate[rows]]], axis=-1)


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

    def features(self, facts: ThreadFacts, windows: Windows, scores: Mapping[str, np.ndarray]) -> Features:
        """Compute the features of messages of one thread.

        Args:
            facts: facts about the thread, with the cue words of this space.
            windows: M messages and their candidates.
            scores: for each of `legs` float64[P], the scores of all pairs.
        """
        sizes = windows.sizes
        _, candidate = windows.pairs()
        core = np.empty((len(candidate), N_PAIR + 3 * len(self.legs)), dtype=np.float32)
        of_candidates = np.zeros((len(sizes), len(OF_CANDIDATES)))
        fill_pairs(facts, windows.place, windows.low, core, of_candidates)
        best = np.zeros((len(sizes), len(self.legs)))
        for number, leg in enumerate(self.legs):
            fill_leg(scores[leg], sizes, core, N_PAIR + 3 * number, best[:, number])
        authors, best_cosine, best_rarest = of_candidates.T
        messages = message_structure(facts, windows) | {
            "log_authors_in_window": counted(authors),
            "best_cosine": best_cosine,
            "best_rarest": best_rarest,
        }
        columns = [messages[name] for names in MESSAGE_GROUPS.values() for name in names]
        parts = [*columns, best, facts.alone[windows.place]]
        # The most frequent cue words come first.
        alone = facts.alone[:, : len(FORM) + CANDIDATE_CUES]
        return Features(core, candidate, alone, np.column_stack(parts).astype(np.float32))
