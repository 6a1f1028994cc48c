"""Retriever and model as one system: the posts that both together find most likely.

A post's score is a · log p of the model + b · log p of the learned fusion. The weights a and b are fitted
by maximum likelihood on training comments that the model has not seen. The fusion's log-probabilities come
from a perceptron that has not seen them either. The scored comments decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from retrieval.evaluation.answer_scores import Prediction, prediction_from_answer

Row = Mapping[str, Any]

# Newton's method ends when no weight moves by more than this.
_STEP = 1e-6
_MOST_STEPS = 100
# Precision of the weights' prior, in comments: few comments leave the weights near (0, 1), the fusion alone.
_PRIOR = 1.0


@dataclass(frozen=True)
class Weights:
    """Weights of the log-probabilities of model and learned fusion, and the comments behind them."""

    model: float
    learned: float
    fitted_on: int


def fit_weights(records: Sequence[Row], rows: Sequence[Row]) -> Weights:
    """Fit the two weights on comments whose parent is known and in the prompt.

    Args:
        records: records with `choice_scores`, that neither the model nor the ranker has seen.
        rows: the model's answers to them, with `choice_logprobs`.

    Raises:
        InputError: no record has a right choice.
    """
    answers = {row["id"]: row["choice_logprobs"] for row in rows}
    examples = []
    for record in records:
        right = np.isin(record["choices"], record["gold"])
        if right.any():
            scores = np.stack([answers[record["id"]], record["choice_scores"]], axis=1)
            examples.append((scores, right))
    if not examples:
        raise InputError("evaluate.combine_records: no drawn training comment has its parent in its prompt")
    first = np.array([0.0, 1.0])
    weights = first.copy()
    for _ in range(_MOST_STEPS):
        gradient, curvature = -_PRIOR * (weights - first), _PRIOR * np.eye(2)
        for scores, right in examples:
            among, all_ = scores[right], scores
            p, q = _softmax(all_ @ weights), _softmax(among @ weights)
            gradient += q @ among - p @ all_
            centred = all_ - p @ all_
            # The part of the right choices is left out: with one right choice, which is usual, it is zero.
            curvature += (centred * p[:, None]).T @ centred
        step = np.linalg.solve(curvature, gradient)
        # Half of a long step: far from the maximum, the curvature at the place says little about the way.
        weights = weights + step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < _STEP:
            break
    # A model that is right less often than chance gets no negative weight: it is left out.
    model, learned = (max(0.0, float(value)) for value in weights)
    return Weights(round(model, 6), round(learned, 6), len(examples))


def combine(
    records: Sequence[Row], rows: Sequence[Row], rankings: Sequence[Row], weights: Weights
) -> dict[str, Prediction]:
    """Return the combined answer to each record, by id.

    A comment whose most likely post by the learned fusion is not in its prompt keeps this post as answer: the
    model has not read it.

    Args:
        records: the held-out records, with `choice_scores`.
        rows: the model's answers to them, with `choice_logprobs`.
        rankings: their rows of `rankings.parquet`.
        weights: of model and fusion.
    """
    answers = {row["id"]: row["choice_logprobs"] for row in rows}
    best = {row["id"]: row for row in rankings}
    found = {}
    for record in records:
        name, ranking = record["id"], best[record["id"]]
        first = ranking["learned"][0]
        if first in record["context_ids"]:
            scores = weights.model * np.array(answers[name]) + weights.learned * np.array(
                record["choice_scores"]
            )
            # Of equal scores the first choice wins, as in the evaluation of the model.
            found[name] = prediction_from_answer(record["choices"][int(np.argmax(scores))], record)
        else:
            author = ranking["candidate_authors"][ranking["candidate_ids"].index(first)]
            found[name] = Prediction(first, author)
    return found


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Return the probabilities float64[C] of scores float64[C]."""
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
