"""The reply links that a system's answers mean, and the probability from which a second parent counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.evaluation.answer_scores import Prediction, prediction_from_answer
from retrieval.evaluation.measures.links import Link

Row = Mapping[str, Any]
#: More decimals than the intervals of scores have.
_DECIMALS = 6


def answer_links(
    rows: Sequence[Row],
    answers: Mapping[str, Prediction],
    second: Mapping[str, Prediction] | None = None,
) -> dict[str, set[Link]]:
    """Return the links of answers by log.

    A message without an answer, or whose answer names no post, starts a conversation: it has a link to
    itself.

    Args:
        rows: rows of `links.parquet`, of whole logs.
        answers: the answers by record id.
        second: second parents by record id, of messages that have some.
    """
    numbers = {(row["context_id"], row["post_id"]): row["number"] for row in rows if row["post_id"]}
    found: dict[str, set[Link]] = {}
    for row in rows:
        links = found.setdefault(row["context_id"], set())
        if not row["parents"]:
            continue
        named = [given[row["id"]] for given in (answers, second or {}) if row["id"] in given]
        parents = [numbers[row["context_id"], one.post_id] for one in named if one.post_id is not None]
        links |= {(row["number"], parent) for parent in parents or [row["number"]]}
    return found


def second_parents(records: Sequence[Row], rows: Sequence[Row], threshold: float) -> dict[str, Prediction]:
    """Return the second most likely post of each record whose probability is at least the threshold.

    A record whose most likely choices include "none of these posts" has no second parent.

    Args:
        records: the records.
        rows: one system's answers to them, with `choice_logprobs`.
        threshold: probability among the choices of a record.
    """
    answers = {row["id"]: row["choice_logprobs"] for row in rows}
    found = {}
    for record in records:
        first, second, share = _two_best(record, answers[record["id"]])
        if first.post_id is not None and second.post_id is not None and share >= threshold:
            found[record["id"]] = second
    return found


def second_parent_threshold(records: Sequence[Row], rows: Sequence[Row]) -> float | None:
    """Return the probability from which a second post counts as a parent too: the one with the best link F1.

    Args:
        records: records that the system has not seen.
        rows: its answers to them, with `choice_logprobs`.

    Returns:
        The threshold; None if no threshold gives a better F1 than one parent for each message.
    """
    answers = {row["id"]: row["choice_logprobs"] for row in rows}
    matched = predicted = gold = 0
    # (probability, whether it is right) of every second post.
    more: list[tuple[float, bool]] = []
    for record in records:
        right = set(record["oracle_ids"])
        first, second, share = _two_best(record, answers[record["id"]])
        gold += max(1, len(right))
        predicted += 1
        matched += first.post_id in right if right else first.post_id is None
        if first.post_id is not None and second.post_id is not None:
            more.append((share, second.post_id in right))
    best, threshold = 2 * matched / max(1, predicted + gold), None
    more.sort(key=lambda pair: -pair[0])
    for number, (share, is_right) in enumerate(more, start=1):
        matched += is_right
        # Of equal probabilities, all count or none.
        if number < len(more) and more[number][0] == share:
            continue
        f1 = 2 * matched / (predicted + number + gold)
        if f1 > best:
            best, threshold = f1, share
    return threshold


def _two_best(record: Row, logprobs: Sequence[float]) -> tuple[Prediction, Prediction, float]:
    """Return the two most likely choices of a record, and the probability of the second one."""
    scores = np.asarray(logprobs, dtype=np.float64)
    shares = np.exp(scores - scores.max())
    # Of equal ones the first choice, as in the evaluation of the model.
    order = np.argsort(-scores, kind="stable")[:2].tolist()
    named = [prediction_from_answer(record["choices"][place], record) for place in order]
    if len(order) == 1:
        return named[0], Prediction(None, None), 0.0
    return named[0], named[1], round(float(shares[order[1]] / shares.sum()), _DECIMALS)
