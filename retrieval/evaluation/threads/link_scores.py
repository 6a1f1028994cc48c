"""Scores of reply links as sets, and of the conversations that they make, with intervals over logs.

Links are counted as `graph-eval.py` and conversations as `conversation-eval.py` of irc-disentanglement count
them (arXiv:1810.11118). All scores pool the logs. Their intervals resample whole logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from retrieval.evaluation.context_bootstrap import CONFIDENCE, ContextBootstrap
from retrieval.evaluation.measures.conversations import COUNTS, conversation_counts, conversations, measures
from retrieval.evaluation.measures.links import Link
from retrieval.settings.tasks import LINK_SCORES

Links = Mapping[str, Set[Link]]


def link_scores(gold: Links, systems: Mapping[str, Links], *, seed: int, resamples: int) -> dict[str, Any]:
    """Score the links of several systems on the same logs, with the same resamples.

    Args:
        gold: annotated links by log; every annotated message has one, so starts have theirs to themselves.
        systems: predicted links by system and log, of the annotated messages.
        seed: seed of the resamples.
        resamples: number of resamples.

    Returns:
        `{"logs", "messages", "links", "systems": {name: scores}}`, where `scores` are LINK_SCORES and
        CONVERSATION_SCORES, each `{value, low, high, n}`; n is the number of annotated links or of messages.
    """
    # Of a log without annotated messages nothing is known.
    logs = sorted(log for log, links in gold.items() if links)
    draws = ContextBootstrap.over(logs, seed, resamples).draws.astype(np.float64)
    found = {name: _scores(gold, said, logs, draws) for name, said in systems.items()}
    messages = sum(len({message for message, _ in gold[log]}) for log in logs)
    links = sum(len(gold[log]) for log in logs)
    return {"logs": len(logs), "messages": messages, "links": links, "systems": found}


def _scores(gold: Links, said: Links, logs: list[str], draws: np.ndarray) -> dict[str, dict[str, Any]]:
    counts = np.array([_counts(gold[log], said.get(log, frozenset())) for log in logs])
    counts = counts.reshape(len(logs), 3 + len(COUNTS))
    # Row 0 is the sum over all logs, the others are those of the resamples.
    sums = np.concatenate([counts.sum(axis=0, keepdims=True), draws @ counts])
    with np.errstate(divide="ignore", invalid="ignore"):
        matched, predicted, right = sums[:, 0], sums[:, 1], sums[:, 2]
        values = {
            "link_precision": matched / predicted,
            "link_recall": matched / right,
            "link_f1": 2 * matched / (predicted + right),
        }
    values |= measures(sums[:, 3:])
    messages = int(sums[0, 3 + COUNTS.index("messages")])
    n = {name: int(sums[0, 2]) if name in LINK_SCORES else messages for name in values}
    return {name: _with_interval(each, n[name]) for name, each in values.items()}


def _counts(gold: Set[Link], said: Set[Link]) -> list[float]:
    """Return matched, predicted and right links, then the counts of the conversations of one log."""
    messages = {message for message, _ in gold}
    right, predicted = (
        # Messages without annotation are in no conversation: nobody says where they belong.
        [kept for each in conversations(links, min(messages, default=0)) if (kept := each & messages)]
        for links in (gold, said)
    )
    return [len(gold & said), len(said), len(gold), *conversation_counts(right, predicted).tolist()]


def _with_interval(values: np.ndarray, n: int) -> dict[str, Any]:
    value, drawn = values[0], values[1:][~np.isnan(values[1:])]
    if np.isnan(value) or not len(drawn):
        return {"value": None, "low": None, "high": None, "n": n}
    outside = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [outside, 100 - outside])
    return {
        "value": round(float(value), 6),
        "low": round(float(low), 6),
        "high": round(float(high), 6),
        "n": n,
    }
