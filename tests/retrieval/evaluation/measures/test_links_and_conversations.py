"""Links and conversations by hand, against slow and independent counts on random graphs, and on real logs."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evaluation.measures.conversations import conversation_scores, conversations
from retrieval.evaluation.measures.links import Link, annotated_links, count_links

Graphs = dict[str, set[Link]]


def test_links_are_read_as_the_evaluator_reads_them() -> None:
    lines = ["3 1 -", "2 5 -", "6 6 -", "7 -", "8 2 8 -", "4 1 2 -", ""]
    assert annotated_links(lines) == {(3, 1), (5, 2), (6, 6), (7, 7), (8, 2), (8, 8), (4, 1), (4, 2)}
    with pytest.raises(ValueError, match="invalid literal"):
        annotated_links(["3 x -"])


def test_links_by_hand() -> None:
    gold = {"a": [(1, 1), (2, 1), (3, 2), (3, 1)], "b": [(1, 1), (2, 2)]}
    predicted = {"a": [(1, 1), (2, 1), (2, 1), (3, 3)], "c": [(1, 1)]}
    counts = count_links(gold, predicted)
    # The log b is missed as a whole, and c is unknown. The link to itself of message 1 counts.
    assert (counts.gold, counts.predicted, counts.matched) == (6, 4, 2)
    scores = counts.scores
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((2 / 4, 2 / 6, 4 / 10))
    nothing = count_links({"a": []}, {}).scores
    assert (nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0)


def test_conversations_are_components_after_the_context() -> None:
    links = [(10, 3), (11, 10), (12, 12), (13, 3), (14, 12), (15, 15)]
    # Message 3 is context: it joins 10 and 13, and is no message of the conversation.
    assert conversations(links) == [{10, 11, 13}, {12, 14}, {15}]
    assert conversations(links, first=12) == [{12, 14}, {13}, {15}]
    assert conversations([]) == []


def test_conversation_measures_by_hand() -> None:
    gold = {"a": [[1, 2, 3], [4]], "b": [[1, 2]]}
    predicted = {"a": [[1, 2], [3, 4]], "b": [[1, 2]]}
    found = conversation_scores(gold, predicted)
    # Overlaps of 2, 1, 1 and 2 of six messages. Best pairs: 2 + 1 in a, 2 in b.
    assert found.one_to_one == pytest.approx(5 / 6)
    # F1 of {1, 2, 3}: 4/5 with {1, 2}; of {4}: 2/3; of b: 1.
    assert found.shen_f1 == pytest.approx((3 * 4 / 5 + 1 * 2 / 3 + 2) / 6)
    # {4} has one message and does not count: 1 of 2 right, 1 of 3 predicted.
    assert (found.exact_match.recall, found.exact_match.precision) == pytest.approx((1 / 2, 1 / 3))
    # Pairs: 15 in all, together 3 + 1 = 4 and 1 + 1 + 1 = 3, on both sides 2. By chance 4 · 3 / 15.
    assert found.adjusted_rand_index == pytest.approx((2 - 4 / 5) / (7 / 2 - 4 / 5))


def test_the_same_conversations_are_right_in_everything() -> None:
    gold = {"a": [[1, 2, 3], [4, 5]]}
    found = conversation_scores(gold, gold)
    assert (found.one_minus_vi, found.adjusted_rand_index, found.one_to_one, found.shen_f1) == (1, 1, 1, 1)
    assert found.exact_match.f1 == 1


def test_measures_without_a_value() -> None:
    apart = conversation_scores({"a": [[1], [2]]}, {"a": [[1], [2]]})
    assert apart.adjusted_rand_index is None and apart.one_minus_vi == 1
    one = conversation_scores({"a": [[1]]}, {"a": [[1]]})
    assert (one.one_minus_vi, one.adjusted_rand_index, one.one_to_one, one.shen_f1) == (None, None, 1, 1)
    none = conversation_scores({"a": []}, {"a": []})
    assert (none.one_to_one, none.shen_f1, none.exact_match.f1) == (None, None, 0)


@pytest.mark.parametrize(
    ("gold", "predicted", "message"),
    [
        ({"a": [[1]]}, {"b": [[1]]}, "logs of one side only: a, b"),
        ({"a": [[1]]}, {"a": [[1], [2]]}, "a: message 2 is on one side only"),
        ({"a": [[1, 2]]}, {"a": [[1, 2], [2]]}, "a: message 2 is in two conversations"),
    ],
)
def test_both_sides_have_the_same_messages(gold: dict, predicted: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversation_scores(gold, predicted)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graphs, Graphs]:
    """Right and predicted links of up to three logs: messages 2 to 7, parents from 0 on, some several."""
    sides: tuple[Graphs, Graphs] = ({}, {})
    for log in "abc"[: draw(st.integers(1, 3))]:
        last = draw(st.integers(3, 7))
        for side in sides:
            side[log] = {
                (message, parent)
                for message in range(2, last + 1)
                for parent in draw(st.sets(st.integers(0, message), min_size=1, max_size=3))
            }
    return sides


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_random_graphs(sides: tuple[Graphs, Graphs]) -> None:
    gold, predicted = sides
    counts = count_links(gold, predicted)
    pairs = [{(log, *link) for log, links in side.items() for link in links} for side in sides]
    assert (counts.gold, counts.predicted) == (len(pairs[0]), len(pairs[1]))
    assert counts.matched == len(pairs[0] & pairs[1])

    right, said = slow_labels(gold), slow_labels(predicted)
    talks = [{log: conversations(links) for log, links in side.items()} for side in sides]
    found = conversation_scores(*talks)
    assert found.one_minus_vi == pytest.approx(slow_one_minus_vi(right, said))
    assert found.one_to_one == pytest.approx(slow_one_to_one(right, said))
    assert found.shen_f1 == pytest.approx(slow_shen(right, said))
    expected = slow_rand(right, said)
    assert found.adjusted_rand_index == (None if expected is None else pytest.approx(expected))
    one, other = ({g for g in slow_groups(labels) if len(g) > 1} for labels in (right, said))
    assert found.exact_match.precision == pytest.approx(len(one & other) / max(len(other), 1))
    assert found.exact_match.recall == pytest.approx(len(one & other) / max(len(one), 1))


Labels = dict[tuple[str, int], tuple[str, int]]


def slow_labels(side: Graphs) -> Labels:
    """The smallest message that a message reaches: the smaller label goes along links until all rest."""
    labels: Labels = {}
    for log, links in side.items():
        found = {message: message for link in links for message in link}
        for _ in found:
            for one, other in links:
                found[one] = found[other] = min(found[one], found[other])
        labels |= {(log, message): (log, label) for message, label in found.items() if message >= 2}
    return labels


def slow_groups(labels: Labels) -> list[frozenset]:
    return [frozenset(m for m in labels if labels[m] == label) for label in sorted(set(labels.values()))]


def slow_one_minus_vi(right: Labels, said: Labels) -> float:
    """Variation of information as the two conditional entropies, message by message."""
    n, total = len(right), 0.0
    for message in right:
        one = {m for m in right if right[m] == right[message]}
        other = {m for m in said if said[m] == said[message]}
        both = len(one & other)
        total -= (math.log2(both / len(one)) + math.log2(both / len(other))) / n
    return 1 - total / math.log2(n)


def slow_rand(right: Labels, said: Labels) -> float | None:
    """The index from all pairs of messages, in fractions."""
    pairs = list(combinations(right, 2))
    one = [right[a] == right[b] for a, b in pairs]
    other = [said[a] == said[b] for a, b in pairs]
    both = sum(x and y for x, y in zip(one, other, strict=True))
    expected = Fraction(sum(one) * sum(other), len(pairs))
    most = Fraction(sum(one) + sum(other), 2)
    return None if most == expected else float((both - expected) / (most - expected))


def slow_one_to_one(right: Labels, said: Labels) -> float:
    """The best of all pairings, log by log."""
    total = 0
    for log in {log for log, _ in right}:
        short, long = sorted(
            ([g for g in slow_groups(side) if min(g)[0] == log] for side in (right, said)), key=len
        )
        total += max(
            sum(len(a & b) for a, b in zip(short, order, strict=True))
            for order in permutations(long, len(short))
        )
    return total / len(right)


def slow_shen(right: Labels, said: Labels) -> float:
    total = 0.0
    for one in slow_groups(right):
        total += len(one) * max(2 * len(one & other) / (len(one) + len(other)) for other in slow_groups(said))
    return total / len(right)
