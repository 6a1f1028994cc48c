"""The features of many pairs at once equal those of the slow reference, and the legs that they stand for."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.corpus.types import Post
from retrieval.search.learned.features import FeatureSpace, Windows, leg_scores
from retrieval.search.learned.pair_features import fill_leg
from retrieval.search.learned.thread_facts import FORM, ThreadFacts, form_of, thread_facts
from retrieval.search.legs.leg import LegQuery, LegRanking, rank_by_score
from retrieval.search.legs.rank_legs import rank_legs

from .slow_features import LARGEST, SlowThread

CUES = ("hi", "thanks", "the")
SPACE = FeatureSpace(("bm25",), CUES)
AUTHORS = ["ana", "Bo", "|tre|", "the cat", "x", "--"]
WORDS = ["hi", "thanks", "the", "cat", "kernel", "boot", "ana:", "@bo", "bo,", "|tre|", "--", "x", "?", "42"]

texts = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
times = st.none() | st.integers(0, 400).map(float)
threads = st.lists(st.tuples(st.sampled_from(AUTHORS), texts, times), min_size=2, max_size=14)


def posts_of(rows: Sequence[tuple[str, str, float | None]]) -> list[Post]:
    return [Post(str(k), author, text, time=time) for k, (author, text, time) in enumerate(rows)]


def idf(word: str) -> float:
    """Some weight; two words may share it, and one has none."""
    return zlib.crc32(word.encode()) % 5 / 2


class Weights:
    largest = LARGEST

    def of(self, words: Sequence[str]) -> np.ndarray:
        return np.array([idf(word) for word in words])


def facts_of(posts: Sequence[Post]) -> ThreadFacts:
    return thread_facts(posts, str.split, Weights(), SPACE.cue_numbers)


@settings(max_examples=60, deadline=None)
@given(threads, st.integers(1, 14))
def test_features_equal_the_slow_reference(rows: list[tuple[str, str, float | None]], window: int) -> None:
    posts = posts_of(rows)
    facts, slow = facts_of(posts), SlowThread(posts, str.split, idf)
    place = np.arange(1, len(posts))
    windows = Windows(place, np.maximum(place - window, 0))
    found = SPACE.features(facts, windows, _bm25(windows.sizes))
    pair_names, message_names = list(SPACE.pair_groups), list(SPACE.message_groups)
    assert found.pairs.shape == (windows.sizes.sum(), len(pair_names))
    assert found.messages.shape == (len(place), len(message_names))
    at = 0
    for number, (i, low) in enumerate(zip(place.tolist(), windows.low.tolist(), strict=True)):
        _same(found.messages[number], message_names, slow.message(i, low))
        for c in range(low, i):
            _same(found.pairs[at], pair_names, slow.pair(i, c, low))
            row = dict(zip(pair_names, found.pairs[at].tolist(), strict=True))
            form = form_of(posts[c].text, len(posts[c].text.split()))
            assert [row[f"candidate_{name}"] for name in FORM] == pytest.approx(form)
            said = posts[c].text.split()
            assert [row[f"candidate_word_{word}"] for word in CUES] == [float(word in said) for word in CUES]
            at += 1


@settings(max_examples=60, deadline=None)
@given(threads)
def test_features_tell_what_the_legs_rank(rows: list[tuple[str, str, float | None]]) -> None:
    posts = posts_of(rows)
    i = len(posts) - 1
    query = LegQuery(posts[i], posts[:i])
    names = ["recency", "mention", "opening", "addressed_me", "same_author"]
    legs = {name: ranking.places.tolist() for name, ranking in rank_legs(names, query).items()}
    windows = Windows(np.array([i]), np.array([0]))
    pairs = SPACE.features(facts_of(posts), windows, _bm25([i])).pairs
    row = {name: pairs[:, number] for number, name in enumerate(SPACE.pair_groups)}
    own = {c for c in range(i) if posts[c].author == posts[i].author}
    assert np.argsort(row["log_distance"], kind="stable").tolist() == legs["recency"]
    assert set(np.flatnonzero(row["is_opening"]).tolist()) == set(legs["opening"])
    assert set(np.flatnonzero(row["same_author"]).tolist()) == own == set(legs["same_author"])
    # People do not talk to themselves: the legs count one's own name, the features do not.
    assert set(np.flatnonzero(row["named"]).tolist()) == set(legs["mention"]) - own
    # A message names somebody only if that person wrote before it.
    wrote = {c for c in legs["addressed_me"] if posts[i].author in {p.author for p in posts[:c]}}
    assert set(np.flatnonzero(row["names_me"]).tolist()) == wrote


def test_features_do_not_depend_on_what_is_computed_together() -> None:
    rows = [(AUTHORS[k % 4], f"{WORDS[k % 14]} {WORDS[k * 5 % 14]} kernel", float(k)) for k in range(40)]
    facts = facts_of(posts_of(rows))
    place = np.arange(1, 40)
    low = np.maximum(place - 9, 0)
    together = SPACE.features(facts, Windows(place, low), _bm25(place - low))
    ends = np.cumsum(place - low)
    for k in range(len(place)):
        one = Windows(place[k : k + 1], low[k : k + 1])
        alone = SPACE.features(facts, one, _bm25(one.sizes))
        assert alone.pairs.tobytes() == together.pairs[ends[k] - len(alone.pairs) : ends[k]].tobytes()
        assert alone.messages.tobytes() == together.messages[k : k + 1].tobytes()


def test_later_messages_change_nothing() -> None:
    rows = [(AUTHORS[k % 4], f"{WORDS[k % 14]} {WORDS[k * 5 % 14]} kernel", float(k)) for k in range(40)]
    window = Windows(np.array([20]), np.array([3]))
    found = [SPACE.features(facts_of(posts_of(rows[:n])), window, _bm25([17])) for n in (21, 40)]
    assert found[0].pairs.tobytes() == found[1].pairs.tobytes()
    assert found[0].messages.tobytes() == found[1].messages.tobytes()


def test_a_leg_gives_rank_score_and_share() -> None:
    own = leg_scores(LegRanking(np.array([1, 2])), 3)
    assert own.tolist() == [0, 1, 0.5]
    dense = leg_scores(LegRanking(np.array([2, 0, 1]), np.array([3.0, 1.0, -1.0])), 3)
    pairs, best = np.full((6, 8), 7.0, dtype=np.float32), np.zeros(2)
    for column, scores in ((1, np.tile(dense, 2)), (4, np.tile(own, 2))):
        fill_leg(scores, np.array([3, 3]), pairs, column, best)
        assert best == pytest.approx(np.log1p([scores.max()] * 2) / 2)
    left, rank, score, share, own_rank, own_score, own_share, right = pairs.T
    assert left.tolist() == right.tolist() == [7] * 6
    assert rank.tolist() == [0.5, 0.0, 1.0] * 2
    assert score == pytest.approx(np.tile(np.log1p([1, 0, 3]) / 2, 2))
    assert share == pytest.approx([1 / 3, 0, 1] * 2)
    assert own_rank.tolist() == own_share.tolist() == [0, 1, 0.5] * 2
    assert own_score == pytest.approx(np.tile(np.log1p([0, 1, 0.5]) / 2, 2))
    # Of equal scores, the earlier one is first, as in `rank_by_score`.
    equal = np.array([2.0, 5.0, 2.0, 0.0])
    fill_leg(equal, np.array([4]), pairs, 0, best)
    ranks = np.zeros(4)
    ranks[rank_by_score(equal).places] = 1 / np.arange(1, 5)
    assert pairs[:4, 0].tolist() == pytest.approx([*ranks[:3], 0])


def test_words_before_the_first_candidate_are_not_needed() -> None:
    rows = [(AUTHORS[k % 4], f"{WORDS[k % 14]} {WORDS[k * 5 % 14]} kernel 2", float(k)) for k in range(40)]
    windows = Windows(np.arange(20, 40), np.arange(10, 30))
    found = [
        SPACE.features(
            thread_facts(posts_of(rows), str.split, Weights(), SPACE.cue_numbers, first),
            windows,
            _bm25(windows.sizes),
        )
        for first in (0, 10)
    ]
    assert found[0].pairs.tobytes() == found[1].pairs.tobytes()
    assert found[0].messages.tobytes() == found[1].messages.tobytes()


def _bm25(sizes: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    return {"bm25": np.concatenate([np.arange(n) % 3.0 for n in sizes])}


def _same(row: np.ndarray, names: Sequence[str], expected: dict[str, float]) -> None:
    found = dict(zip(names, row.tolist(), strict=True))
    # As numbers: approx compares truth values by identity.
    numbers = {name: float(value) for name, value in expected.items()}
    assert {name: found[name] for name in expected} == pytest.approx(numbers, abs=1e-5)
