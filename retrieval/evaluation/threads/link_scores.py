"""Scores of reply links as sets, and of the conversations that they make, with intervals over logs.

Links are counted as `graph-eval.py` and conversations as `conversation-eval.py` of irc-disentanglement count
them (arXiv:1810.11118). All scores pool the logs. Their intervals resample whole logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from retrieval.evaluation.context_bootstrap import ContextBootstrap
from retrieval.evaluation.measures.conversations import COUNTS, conversation_counts, conversations, measures
from retrieval.evaluation.measures.links import Link

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
    bootstrap = ContextBootstrap.over(logs, seed, resamples)
    found = {name: _scores(gold, said, logs, bootstrap) for name, said in systems.items()}
    messages = sum(len({message for message, _ in gold[log]}) for log in logs)
    links = sum(len(gold[log]) for log in logs)
    return {"logs": len(logs), "messages": messages, "links": links, "systems": found}


def _scores(
    gold: Links, said: Links, logs: list[str], bootstrap: ContextBootstrap
) -> dict[str, dict[str, Any]]:
    counts = np.array([_counts(gold[log], said.get(log, frozenset())) for log in logs])
    counts = counts.reshape(len(logs), 3 + len(COUNTS))
    matched, predicted, right = counts[:, 0], counts[:, 1], counts[:, 2]
    links = int(right.sum())
    found = {
        "link_precision": bootstrap.ratio(matched, predicted),
        "link_recall": bootstrap.ratio(matched, right),
        "link_f1": bootstrap.ratio(2 * matched, predicted + right),
    }
    found = {name: score | {"n": links} for name, score in found.items()}
    # Row 0 is the sum over all logs, the others are those of the resamples.
    sums = np.concatenate([counts.sum(axis=0, keepdims=True), bootstrap.draws.astype(np.float64) @ counts])
    messages = counts[:, 3 + COUNTS.index("messages")]
    for name, values in measures(sums[:, 3:]).items():
        low, high = bootstrap.resampled(values, messages) or (None, None)
        value = None if np.isnan(values[0]) else round(float(values[0]), 6)
        found[name] = {"value": value, "low": low, "high": high, "n": int(messages.sum())}
    return found


def _counts(gold: Set[Link], said: Set[Link]) -> list[float]:
    """Return matched, predicted and right links, then the counts of the conversations of one log."""
    messages = {message for message, _ in gold}
    right, predicted = (
        # Messages without annotation are in no conversation: nobody says where they belong.
        [kept for each in conversations(links, min(messages, default=0)) if (kept := each & messages)]
        for links in (gold, said)
    )
    return [len(gold & said), len(said), len(gold), *conversation_counts(right, predicted).tolist()]
