"""Legs, fusion and recall on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.corpus.types import Post
from retrieval.evaluation.retriever_ranks import RankTally
from retrieval.search.conversation_legs import (
    addressed_me,
    conversation_legs,
    mentions,
    opening,
    partner,
    recency,
)
from retrieval.search.fusion import Say, by_score, fuse, reciprocal_rank_fusion, weighted_score_fusion
from retrieval.settings.tasks import ThreadsTask


def test_by_score_counts_what_has_a_say() -> None:
    order, positive = by_score(np.array([0.0, 2.0, 0.0, 2.0, -1.0]))
    assert (order.tolist(), positive) == ([1, 3, 0, 2, 4], 2)


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("Marta: yes", [3, 0]),
        ("@marta yes, and Lena too", [3, 0, 1]),
        ("thanks to lena and marta", [3, 1, 0]),
        ("Martand is not Marta's twin", [3, 0]),
        ("Martand only", []),
        ("|trey| hi", [2]),
        ("x marks the spot", []),
        ("", []),
    ],
)
def test_mentions(comment: str, expected: list[int]) -> None:
    assert mentions(comment, ["Marta", "Lena", "|trey|", "Marta", "x"]).tolist() == expected


def test_fusion_sums_reciprocal_ranks() -> None:
    legs = {"bm25": np.array([2]), "recency": recency(4)}
    # place 2: 1/6 + 1/7; place 3: 1/6; then recency alone
    assert reciprocal_rank_fusion(legs, 4, 5).tolist() == [2, 3, 1, 0]
    assert reciprocal_rank_fusion({"bm25": np.zeros(0, dtype=int)}, 3, 5).tolist() == [0, 1, 2]


def test_weights_scale_a_leg_and_the_order_of_the_legs_decides_nothing() -> None:
    legs = {"a": np.array([0, 1]), "b": np.array([1, 0]), "c": np.array([2])}
    assert reciprocal_rank_fusion(legs, 3, 5).tolist() == [0, 1, 2]
    # place 0: 1/6 + 2/7 = 0.4524; place 1: 1/7 + 2/6 = 0.4762; place 2: 3/6
    weights = {"b": 2.0, "c": 3.0}
    assert reciprocal_rank_fusion(legs, 3, 5, weights).tolist() == [2, 1, 0]
    backwards = dict(reversed(legs.items()))
    assert reciprocal_rank_fusion(backwards, 3, 5, weights).tolist() == [2, 1, 0]
    assert reciprocal_rank_fusion(legs, 3, 5, {"a": 1.5, "b": 0.0, "c": 0.0}).tolist() == [0, 1, 2]


def test_weighted_fusion_normalises_each_leg_over_the_question() -> None:
    legs = {
        # all candidates scored: 0.9 -> 1, 0.8 -> 0.5, 0.7 -> 0
        "dense": Say(np.array([2, 0, 1]), np.array([0.9, 0.8, 0.7])),
        # place 2 has no say, so it counts 0: 10 -> 1, 4 -> 0.4
        "bm25": Say(np.array([1, 0]), np.array([10.0, 4.0])),
        # no scores: 1/rank
        "recency": Say(np.array([0])),
    }
    # 0: 0.5 + 0.4 = 0.9, 1: 0 + 1, 2: 1 + 0; a tie goes to the earlier
    assert weighted_score_fusion(legs, 3, {"recency": 0.0}).tolist() == [1, 2, 0]
    assert weighted_score_fusion(legs, 3, {"recency": 0.2}).tolist() == [0, 1, 2]
    assert fuse(legs, 3, "weighted", 5, {"recency": 0.2}).tolist() == [0, 1, 2]
    # rrf of the same: 0: 1/7 + 1/7 + 1/6, 1: 1/8 + 1/6, 2: 1/6
    assert fuse(legs, 3, "rrf", 5, {}).tolist() == [0, 1, 2]
    alone = {"bm25": Say(np.array([1]), np.array([3.0])), "dense": Say(np.zeros(0, dtype=int), np.zeros(0))}
    assert weighted_score_fusion(alone, 2, {}).tolist() == [1, 0]
    assert weighted_score_fusion({"bm25": Say(np.array([0, 1]), np.array([2.0, 2.0]))}, 2, {}).tolist() == [
        0,
        1,
    ]


def said(*lines: str) -> list[Post]:
    """`nick text` lines as posts."""
    return [Post(str(i), *line.split(" ", 1)) for i, line in enumerate(lines)]


def test_legs_follow_who_speaks_to_whom() -> None:
    posts = said(
        "lena anyone here with a kettle",
        "marta lena: yes, what about it",
        "oskar hello",
        "lena Marta: it leaks",
        "oskar lenart is no name of yours, marta",
        "marta then mend it, @lena",
    )
    ask = Post("6", "lena", "it is the lid")
    assert addressed_me("lena", posts).tolist() == [5, 1]
    assert partner(ask, posts).tolist() == [5, 1]
    assert partner(Post("6", "lena", "oskar: it is the lid"), posts).tolist() == []
    assert partner(Post("6", "oskar", "right"), posts).tolist() == [5, 1], "named within a line"
    assert partner(Post("6", "wren", "right"), posts).tolist() == []
    wanted = ["partner", "same_author", "recency", "mention", "opening", "addressed_me"]
    legs = conversation_legs(ask, posts, 0, wanted)
    assert set(legs) == set(wanted) and legs["same_author"].tolist() == [3, 0]
    assert conversation_legs(ask, posts, 0, ["bm25"]) == {}


@pytest.mark.parametrize(
    ("weights", "said_"),
    [({"mention": 1}, "mention.*not one of the legs"), ({"bm25": 0, "recency": 0}, "all zero"),
     ({"bm25": -1}, "greater than or equal to 0"), ({"bm25": float("nan")}, "finite")],
)  # fmt: skip
def test_weights_are_checked(weights: dict[str, float], said_: str) -> None:
    with pytest.raises(ValueError, match=said_):
        ThreadsTask(source="x", legs=["bm25", "recency"], weights=weights)


def test_recall_hits_and_reciprocal_rank() -> None:
    tally = RankTally()
    tally.add(np.array([4, 2, 0]), np.array([2, 9]))  # one of two at rank 2, one not found
    tally.add(np.array([1, 0]), np.array([1]))
    tally.add(np.array([1, 0]), np.zeros(0, dtype=int), absent=1)
    summary = tally.summary()
    assert summary["n"] == 3
    assert summary["recall@1"] == pytest.approx(1 / 3, abs=1e-6)
    assert summary["recall@3"] == pytest.approx(0.5)
    assert summary["hit@3"] == pytest.approx(2 / 3, abs=1e-6)
    assert summary["mrr"] == pytest.approx(0.5)
    assert RankTally().summary()["mrr"] is None


def test_the_opening_post_is_a_candidate_of_its_own_only_where_the_window_begins_with_it() -> None:
    assert opening(0).tolist() == [0]
    assert opening(3).tolist() == []
