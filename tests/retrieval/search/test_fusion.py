"""Legs, fusion and recall on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.build.record_files import RANKING_COLUMNS
from retrieval.corpus.types import Post
from retrieval.evaluation.retriever_ranks import RankTally
from retrieval.search.fusion import Fusion, fuse, reciprocal_rank_fusion, weighted_score_fusion
from retrieval.search.legs import addressed_me, mention, opening, partner
from retrieval.search.legs.leg import LegQuery, LegRanking, rank_by_score
from retrieval.search.legs.rank_legs import rank_legs
from retrieval.settings.legs import LEGS
from retrieval.settings.tasks import QaTask, ThreadsTask


def test_only_scores_above_zero_are_counted() -> None:
    ranking = rank_by_score(np.array([0.0, 2.0, 0.0, 2.0, -1.0]))
    counted = ranking.counted()
    assert (ranking.places.tolist(), counted.places.tolist()) == ([1, 3, 0, 2, 4], [1, 3])
    assert counted.scores is not None and counted.scores.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", [*LEGS])
def test_every_registered_leg_ranks_candidates(name: str) -> None:
    """The columns of the rankings and the choices of the web form come from the table."""
    posts = posts_of("lena hello", "marta lena: hello", "lena so")
    query = LegQuery(posts[2], posts[:2], 0, {"bm25": np.array([0.5, 0.0]), "dense": np.array([0.1, 0.9])})
    (ranking,) = rank_legs([name], query).values()
    assert set(ranking.places.tolist()) <= {0, 1} and RANKING_COLUMNS[name] == "list"
    choices = ThreadsTask.model_json_schema()["properties"]["legs"]["items"]["enum"]
    assert choices == list(LEGS) and LEGS[name].title
    with pytest.raises(ValueError, match="Input should be 'bm25', 'dense', 'recency'"):
        ThreadsTask(source="x", legs=[f"{name}?"])
    assert QaTask.model_json_schema()["properties"]["legs"]["items"]["enum"] == ["bm25", "dense"]


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
    candidates = [
        Post(str(i), author, "") for i, author in enumerate(["Marta", "Lena", "|trey|", "Marta", "x"])
    ]
    assert places(mention.rank(LegQuery(Post("9", "wren", comment), candidates))) == expected


def test_fusion_sums_reciprocal_ranks() -> None:
    legs = {"bm25": np.array([2]), "recency": np.arange(3, -1, -1)}
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
        "dense": LegRanking(np.array([2, 0, 1]), np.array([0.9, 0.8, 0.7])),
        # place 2 is not ranked, so it counts 0: 10 -> 1, 4 -> 0.4
        "bm25": LegRanking(np.array([1, 0]), np.array([10.0, 4.0])),
        # no scores: 1/rank
        "recency": LegRanking(np.array([0])),
    }
    # 0: 0.5 + 0.4 = 0.9, 1: 0 + 1, 2: 1 + 0; a tie goes to the earlier
    assert weighted_score_fusion(legs, 3, {"recency": 0.0}).tolist() == [1, 2, 0]
    assert weighted_score_fusion(legs, 3, {"recency": 0.2}).tolist() == [0, 1, 2]
    assert fuse(legs, 3, Fusion("weighted", 5, {"recency": 0.2})).tolist() == [0, 1, 2]
    # rrf of the same: 0: 1/7 + 1/7 + 1/6, 1: 1/8 + 1/6, 2: 1/6
    assert fuse(legs, 3, Fusion("rrf", 5)).tolist() == [0, 1, 2]
    nothing = LegRanking(np.zeros(0, dtype=int), np.zeros(0))
    alone = {"bm25": LegRanking(np.array([1]), np.array([3.0])), "dense": nothing}
    assert weighted_score_fusion(alone, 2, {}).tolist() == [1, 0]
    equal = {"bm25": LegRanking(np.array([0, 1]), np.array([2.0, 2.0]))}
    assert weighted_score_fusion(equal, 2, {}).tolist() == [0, 1]


def posts_of(*lines: str) -> list[Post]:
    """`nick text` lines as posts."""
    return [Post(str(i), *line.split(" ", 1)) for i, line in enumerate(lines)]


def places(ranking: LegRanking) -> list[int]:
    return ranking.places.tolist()


def test_legs_follow_who_speaks_to_whom() -> None:
    posts = posts_of(
        "lena anyone here with a kettle",
        "marta lena: yes, what about it",
        "oskar hello",
        "lena Marta: it leaks",
        "oskar lenart is no name of yours, marta",
        "marta then mend it, @lena",
    )

    def query(author: str, text: str) -> LegQuery:
        return LegQuery(Post("6", author, text), posts)

    comment = query("lena", "it is the lid")
    assert places(addressed_me.rank(comment)) == [5, 1]
    assert places(partner.rank(comment)) == [5, 1]
    assert places(partner.rank(query("lena", "oskar: it is the lid"))) == []
    assert places(partner.rank(query("oskar", "right"))) == [5, 1], "named within a line"
    assert places(partner.rank(query("wren", "right"))) == []
    wanted = ["partner", "same_author", "recency", "mention", "opening", "addressed_me"]
    legs = rank_legs(wanted, comment)
    assert list(legs) == [name for name in LEGS if name in wanted]
    assert places(legs["same_author"]) == [3, 0] and places(legs["recency"]) == [5, 4, 3, 2, 1, 0]
    assert rank_legs([], comment) == {}


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"mention": 1}, "mention.*not one of the legs"), ({"bm25": 0, "recency": 0}, "all zero"),
     ({"bm25": -1}, "greater than or equal to 0"), ({"bm25": float("nan")}, "finite")],
)  # fmt: skip
def test_weights_are_checked(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
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
    comment, candidates = Post("9", "lena", "so"), posts_of("lena hello", "marta hello")
    assert places(opening.rank(LegQuery(comment, candidates, 0))) == [0]
    assert places(opening.rank(LegQuery(comment, candidates, 3))) == []
