"""Legs, fusion and recall on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.hybrid import by_score, mentions, opening, recency, reciprocal_rank_fusion
from retrieval.recall import RankTally


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
