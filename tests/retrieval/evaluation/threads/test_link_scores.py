"""Scores of links with intervals: the values are those of the measures, the intervals resample logs."""

from __future__ import annotations

import pytest

from retrieval.evaluation.measures.conversations import conversation_scores, conversations
from retrieval.evaluation.measures.links import Link, count_links
from retrieval.evaluation.threads.link_rows import links_in
from retrieval.evaluation.threads.link_scores import link_scores
from retrieval.settings.tasks import CONVERSATION_SCORES, LINK_SCORES

GOLD: dict[str, set[Link]] = {
    "a": {(5, 5), (6, 5), (7, 3), (8, 6), (8, 7)},
    "b": {(2, 2), (3, 2), (4, 4)},
    "c": {(1, 1), (2, 1), (3, 3), (4, 3)},
}
SAID: dict[str, set[Link]] = {
    "a": {(5, 5), (6, 5), (7, 6), (8, 7)},
    "b": {(2, 2), (3, 3), (4, 3)},
    "c": {(1, 1), (2, 1), (3, 3), (4, 3)},
}


def test_the_values_pool_all_logs() -> None:
    found = link_scores(GOLD, {"rule": SAID}, seed=0, resamples=50)
    assert (found["logs"], found["messages"], found["links"]) == (3, 11, 12)
    scores = {name: score["value"] for name, score in found["systems"]["rule"].items()}
    assert list(scores) == [*LINK_SCORES, *CONVERSATION_SCORES]
    links = count_links(GOLD, SAID).scores
    assert [scores[name] for name in LINK_SCORES] == pytest.approx(
        [links.precision, links.recall, links.f1], abs=1e-6
    )
    talks = conversation_scores(
        {log: conversations(each) for log, each in GOLD.items()},
        {log: conversations(each) for log, each in SAID.items()},
    )
    for name in ("one_minus_vi", "adjusted_rand_index", "one_to_one", "shen_f1"):
        assert scores[name] == pytest.approx(getattr(talks, name), abs=1e-6)
    assert scores["exact_f1"] == pytest.approx(talks.exact_match.f1, abs=1e-6)
    for score in found["systems"]["rule"].values():
        assert score["low"] <= score["value"] <= score["high"] and score["low"] < score["high"]


def test_intervals_are_those_of_whole_logs() -> None:
    # One log is all right and the others all wrong: a resample of three logs has 0, 1, 2 or 3 right ones.
    gold = {log: {(n, n) for n in range(4)} for log in "abc"}
    said = gold | {log: {(n, max(0, n - 1)) for n in range(4)} - {(0, 0)} | {(0, -1)} for log in "bc"}
    score = link_scores(gold, {"s": said}, seed=1, resamples=4000)["systems"]["s"]["link_recall"]
    assert (score["value"], score["n"]) == (0.333333, 12)
    # The variance of the mean of 1, 0 and 0 is 1/9, as that of two independent records. Student's t of two
    # degrees of freedom is 4.30, so three logs say next to nothing.
    for p in (score["low"], score["high"]):
        assert abs(1 / 3 - p) == pytest.approx(4.3027 * (p * (1 - p) / 2) ** 0.5, rel=0.02)
    assert score["low"] < 0.02 and score["high"] > 0.94


def test_one_log_has_no_interval() -> None:
    found = link_scores({"a": GOLD["a"]}, {"rule": SAID}, seed=0, resamples=50)["systems"]["rule"]
    assert all((score["low"], score["high"]) == (None, None) for score in found.values())
    assert found["link_f1"]["value"] is not None


def test_messages_without_annotation_are_in_no_conversation() -> None:
    # Message 3 is not annotated. The right answer goes over it, the prediction does not.
    gold, said = {"a": {(2, 2), (4, 3), (5, 4)}}, {"a": {(2, 2), (4, 2), (5, 4)}}
    found = link_scores(gold, {"s": said}, seed=0, resamples=10)["systems"]["s"]
    assert found["one_to_one"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["one_to_one"]["n"] == 3 and found["exact_f1"]["value"] == 0


def test_links_of_rows() -> None:
    rows = [
        {"context_id": "a", "number": 1, "parents": [1], "rule": [1]},
        {"context_id": "a", "number": 2, "parents": [1, 0], "rule": [2]},
        {"context_id": "a", "number": 3, "parents": [], "rule": []},
        {"context_id": "b", "number": 1, "parents": [], "rule": []},
    ]
    assert links_in(rows, "parents") == {"a": {(1, 1), (2, 1), (2, 0)}, "b": set()}
    assert links_in(rows, "rule") == {"a": {(1, 1), (2, 2)}, "b": set()}
