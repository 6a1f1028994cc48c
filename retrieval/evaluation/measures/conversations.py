"""Conversations of a log, and measures of them as `conversation-eval.py` of irc-disentanglement counts them.

Conversations are the connected components of reply links. The messages before the first one that has a link
of its own are context only, and are taken out (`graph-to-cluster.py`). All measures pool the conversations of
all logs. Kummerfeld et al. 2019 (arXiv:1810.11118) chose them, after Elsner and Charniak 2008 (one-to-one),
Shen et al. 2006 (matched F1), Meilă 2007 (variation of information) and Hubert and Arabie 1985 (Rand index).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.evaluation.measures.links import Link
from retrieval.evaluation.measures.precision_recall import PrecisionRecall, of_counts

#: The messages of each conversation of one log.
Conversations = Sequence[Collection[int]]


def conversations(links: Iterable[Link], first: int | None = None) -> list[frozenset[int]]:
    """Return the connected components of the links of one log, in the order of their first messages.

    Args:
        links: the links. A message without any link is in no conversation, so starts need their link to
            themselves.
        first: first message that counts; None: the first one that is the later message of a link.
    """
    links = list(links)
    if first is None:
        first = min((max(link) for link in links), default=0)
    parent: dict[int, int] = {}

    def root(message: int) -> int:
        # Every step halves the path, so that long chains of replies stay cheap.
        while parent.setdefault(message, message) != message:
            parent[message] = message = parent.setdefault(parent[message], parent[message])
        return message

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, set[int]] = {}
    for message in sorted(parent):
        if message >= first:
            groups.setdefault(root(message), set()).add(message)
    return [frozenset(group) for group in groups.values()]


@dataclass(frozen=True)
class ConversationScores:
    """Measures of predicted conversations, from 0 to 1 (the Rand index may be below 0).

    A measure is None where its formula divides zero by zero.

    Attributes:
        one_minus_vi: 1 - variation of information / log2 of the number of messages.
        adjusted_rand_index: agreement of pairs of messages, corrected for chance.
        one_to_one: share of messages in the overlap of the best pairing of conversations.
        shen_f1: for each right conversation the best F1 with a predicted one, weighted by its size.
        exact_match: conversations of two or more messages that are predicted exactly.
    """

    one_minus_vi: float | None
    adjusted_rand_index: float | None
    one_to_one: float | None
    shen_f1: float | None
    exact_match: PrecisionRecall


def conversation_scores(
    gold: Mapping[str, Conversations], predicted: Mapping[str, Conversations]
) -> ConversationScores:
    """Return the measures of predicted conversations, pooled over all logs.

    Args:
        gold: right conversations by log.
        predicted: predicted conversations by log, of the same messages.

    Raises:
        ValueError: the two have other logs or other messages, or a message is in two conversations.
    """
    _require_same_messages(gold, predicted)
    table = _Contingency.of(gold, predicted)
    return ConversationScores(
        _one_minus_vi(table),
        _adjusted_rand_index(table),
        _one_to_one(gold, predicted, table.messages),
        _shen_f1(table),
        exact_match(gold, predicted),
    )


def exact_match(gold: Mapping[str, Conversations], predicted: Mapping[str, Conversations]) -> PrecisionRecall:
    """Return precision and recall of whole conversations.

    Conversations of one message do not count, on either side.
    """
    right, said = (
        {
            (log, frozenset(conversation))
            for log, found in side.items()
            for conversation in found
            if len(conversation) > 1
        }
        for side in (gold, predicted)
    )
    return of_counts(len(right & said), len(said), len(right))


@dataclass(frozen=True)
class _Contingency:
    """Numbers of messages by right and predicted conversation.

    Attributes:
        messages: number of all messages.
        gold: sizes of right conversations, by name.
        predicted: sizes of predicted conversations, by name.
        both: numbers of messages that a right and a predicted conversation share, without zeros.
    """

    messages: int
    gold: Counter[tuple[str, int]]
    predicted: Counter[tuple[str, int]]
    both: Counter[tuple[tuple[str, int], tuple[str, int]]]

    @classmethod
    def of(cls, gold: Mapping[str, Conversations], predicted: Mapping[str, Conversations]) -> _Contingency:
        places, other = _places(gold), _places(predicted)
        both = Counter((place, other[message]) for message, place in places.items())
        return cls(len(places), Counter(places.values()), Counter(other.values()), both)


def _places(side: Mapping[str, Conversations]) -> dict[tuple[str, int], tuple[str, int]]:
    """Return the conversation of each message, as (log, number of the conversation)."""
    return {
        (log, message): (log, number)
        for log, found in side.items()
        for number, conversation in enumerate(found)
        for message in conversation
    }


def _require_same_messages(gold: Mapping[str, Conversations], predicted: Mapping[str, Conversations]) -> None:
    if gold.keys() != predicted.keys():
        raise ValueError(f"logs of one side only: {', '.join(sorted(gold.keys() ^ predicted.keys()))}")
    for log in gold:
        right, said = (Counter(m for found in side[log] for m in found) for side in (gold, predicted))
        twice = [message for counts in (right, said) for message, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"{log}: message {min(twice)} is in two conversations")
        if right.keys() != said.keys():
            raise ValueError(f"{log}: message {min(right.keys() ^ said.keys())} is on one side only")


def _one_minus_vi(table: _Contingency) -> float | None:
    n = table.messages
    if n < 2:  # the scale, log2 of n, is zero
        return None
    joint = -sum(count / n * math.log2(count / n) for count in table.both.values())
    shared = sum(
        count / n * math.log2(count * n / (table.gold[right] * table.predicted[said]))
        for (right, said), count in table.both.items()
    )
    return 1 - (joint - shared) / math.log2(n)


def _adjusted_rand_index(table: _Contingency) -> float | None:
    def pairs(counts: Counter) -> int:
        return sum(count * (count - 1) // 2 for count in counts.values())

    total = table.messages * (table.messages - 1) // 2
    if not total:
        return None
    together, right, said = pairs(table.both), pairs(table.gold), pairs(table.predicted)
    expected, most = right * said / total, (right + said) / 2
    # Both sides put every message apart, or all together: no agreement is beyond chance.
    return None if most == expected else (together - expected) / (most - expected)


def _one_to_one(
    gold: Mapping[str, Conversations], predicted: Mapping[str, Conversations], messages: int
) -> float | None:
    # Here: SciPy takes long to import, and plans need none of this.
    from scipy.optimize import linear_sum_assignment

    overlap = 0
    # Log by log, because conversations of two logs share no message.
    for log, right in gold.items():
        said = [set(conversation) for conversation in predicted[log]]
        table = np.array([[len(other.intersection(one)) for other in said] for one in right])
        if table.size:
            overlap += int(table[linear_sum_assignment(table, maximize=True)].sum())
    return overlap / messages if messages else None


def _shen_f1(table: _Contingency) -> float | None:
    best: dict[tuple[str, int], float] = {}
    for (right, said), count in table.both.items():
        f1 = of_counts(count, table.predicted[said], table.gold[right]).f1
        best[right] = max(best.get(right, 0.0), f1)
    if not table.messages:
        return None
    return sum(table.gold[right] * f1 for right, f1 in best.items()) / table.messages
