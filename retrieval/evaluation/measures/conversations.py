"""Conversations of a log, and measures of them as `conversation-eval.py` of irc-disentanglement counts them.

Conversations are the connected components of reply links. The messages before the first one that has a link
of its own are context only, and are taken out (`graph-to-cluster.py`). All measures pool the conversations of
all logs. Each is a function of sums over logs (`conversation_counts`), so that logs can be resampled.
Kummerfeld et al. 2019 (arXiv:1810.11118) chose them, after Elsner and Charniak 2008 (one-to-one),
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


#: What is counted of each log, in the order of the columns of `conversation_counts`. `information` sums
#: n · log2 n over the overlaps of right and predicted conversations, over the right ones, and over the
#: predicted ones; `pairs` are pairs of messages in one conversation; `exact` are whole conversations.
COUNTS = (
    "messages",
    "one_to_one",
    "shen",
    "exact_both",
    "exact_gold",
    "exact_predicted",
    "information_both",
    "information_gold",
    "information_predicted",
    "pairs_both",
    "pairs_gold",
    "pairs_predicted",
)


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
    if gold.keys() != predicted.keys():
        raise ValueError(f"logs of one side only: {', '.join(sorted(gold.keys() ^ predicted.keys()))}")
    counts = np.zeros((1, len(COUNTS)))
    for log, right in gold.items():
        try:
            counts += conversation_counts(right, predicted[log])
        except ValueError as error:
            raise ValueError(f"{log}: {error}") from None
    found = {name: None if np.isnan(each[0]) else float(each[0]) for name, each in measures(counts).items()}
    both, right_ones, said = (
        int(counts[0, COUNTS.index(f"exact_{n}")]) for n in ("both", "gold", "predicted")
    )
    return ConversationScores(
        found["one_minus_vi"],
        found["adjusted_rand_index"],
        found["one_to_one"],
        found["shen_f1"],
        of_counts(both, said, right_ones),
    )


def conversation_counts(gold: Conversations, predicted: Conversations) -> np.ndarray:
    """Return float64[len(COUNTS)], what is counted of one log.

    Args:
        gold: the right conversations.
        predicted: the predicted conversations, of the same messages.

    Raises:
        ValueError: the two have other messages, or a message is in two conversations.
    """
    _require_same_messages(gold, predicted)
    place = {message: number for number, said in enumerate(predicted) for message in said}
    both: Counter[tuple[int, int]] = Counter()
    for number, right in enumerate(gold):
        both.update((number, place[message]) for message in right)
    sizes = [len(each) for each in gold], [len(each) for each in predicted]
    best = [0.0] * len(gold)
    for (right, said), count in both.items():
        best[right] = max(best[right], of_counts(count, sizes[1][said], sizes[0][right]).f1)
    # Conversations of one message do not count as whole conversations.
    exact = [{frozenset(each) for each in side if len(each) > 1} for side in (gold, predicted)]
    groups = list(both.values()), *sizes
    return np.array(
        [
            sum(sizes[0]),
            _one_to_one(both, len(gold), len(predicted)),
            math.fsum(size * f1 for size, f1 in zip(sizes[0], best, strict=True)),
            len(exact[0] & exact[1]),
            len(exact[0]),
            len(exact[1]),
            *(math.fsum(n * math.log2(n) for n in sorted(group) if n) for group in groups),
            *(sum(n * (n - 1) // 2 for n in group) for group in groups),
        ],
        dtype=np.float64,
    )


def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the measures of sums over logs, each float64[R]; NaN where a formula divides zero by zero.

    Args:
        counts: float64[R, len(COUNTS)], a row for each choice of logs.
    """
    of = dict(zip(COUNTS, np.asarray(counts, dtype=np.float64).T, strict=True))
    n = of["messages"]
    all_pairs = n * (n - 1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = of["information_gold"] + of["information_predicted"] - 2 * of["information_both"]
        expected = of["pairs_gold"] * of["pairs_predicted"] / all_pairs
        most = (of["pairs_gold"] + of["pairs_predicted"]) / 2
        # Both sides put every message apart, or all together: no agreement is beyond chance.
        rand = np.where(most == expected, np.nan, (of["pairs_both"] - expected) / (most - expected))
        return {
            # The scale, log2 of n, is zero for one message.
            "one_minus_vi": np.where(n < 2, np.nan, 1 - lost / (n * np.log2(n))),
            "adjusted_rand_index": np.where(n < 2, np.nan, rand),
            "one_to_one": of["one_to_one"] / n,
            "shen_f1": of["shen"] / n,
            "exact_precision": of["exact_both"] / of["exact_predicted"],
            "exact_recall": of["exact_both"] / of["exact_gold"],
            "exact_f1": 2 * of["exact_both"] / (of["exact_predicted"] + of["exact_gold"]),
        }


def _require_same_messages(gold: Conversations, predicted: Conversations) -> None:
    right, said = (Counter(message for each in side for message in each) for side in (gold, predicted))
    twice = [message for counts in (right, said) for message, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"message {min(twice)} is in two conversations")
    if right.keys() != said.keys():
        raise ValueError(f"message {min(right.keys() ^ said.keys())} is on one side only")


def _one_to_one(both: Mapping[tuple[int, int], int], gold: int, predicted: int) -> int:
    """Return the number of messages in the overlaps of the best pairing of conversations.

    Args:
        both: numbers of shared messages by (right, predicted) conversation.
        gold: number of right conversations.
        predicted: number of predicted conversations.
    """
    # Here: SciPy takes long to import, and plans need none of this.
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((gold, predicted), dtype=np.int64)
    for pair, count in both.items():
        table[pair] = count
    return int(table[linear_sum_assignment(table, maximize=True)].sum())
