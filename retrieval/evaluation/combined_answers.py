"""Retriever and model as one system: the posts that both together find most likely.

A post's score is a · log p of the model + b · log p of the learned fusion. The weights a and b are fitted
by maximum likelihood on training comments that the model has not seen. The fusion's log-probabilities come
from a perceptron that has not seen them either. The scored comments decide nothing.

A channel model's log-probabilities are of the same comment after each post. They are standardised among the
posts of a comment first: those of a short comment are wider apart, and do not tell more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from jora_core.base.record_columns import is_channel
from retrieval.evaluation.answer_scores import Prediction, prediction_from_answer

Row = Mapping[str, Any]

# Newton's method ends when no weight moves by more than this.
_STEP = 1e-6
_MOST_STEPS = 100
# Precision of the weights' prior, in comments: few comments leave the weights near (0, 1), the fusion alone.
_PRIOR = 1.0
# Below it, all posts count as equal.
_LEAST_DEVIATION = 1e-6


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
    examples = _examples(records, rows)
    # A model that is right less often than chance gets no negative weight: it is left out.
    model, learned = np.maximum(_maximum_likelihood(examples, np.array([0.0, 1.0])), 0).tolist()
    return Weights(round(model, 6), round(learned, 6), len(examples))


def fit_learned_alone(records: Sequence[Row], rows: Sequence[Row]) -> Weights:
    """Fit the weight of the learned fusion without the model on the same comments; see `fit_weights`."""
    examples = [(scores[:, 1:], right) for scores, right in _examples(records, rows)]
    (learned,) = _maximum_likelihood(examples, np.array([1.0])).tolist()
    return Weights(0.0, round(max(learned, 0.0), 6), len(examples))


def _examples(records: Sequence[Row], rows: Sequence[Row]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the scores [C, 2] of model and fusion, and the right choices bool[C], of comments with any."""
    answers = {row["id"]: row["choice_logprobs"] for row in rows}
    examples = []
    for record in records:
        right = np.isin(record["choices"], record["gold"])
        if right.any():
            examples.append((_scores(record, answers[record["id"]]), right))
    if not examples:
        raise InputError("evaluate.combine_records: no drawn training comment has its parent in its prompt")
    return examples


def _scores(record: Row, logprobs: Sequence[float]) -> np.ndarray:
    """Return float64[C, 2]: the scores of a record's choices by the model and by the learned fusion."""
    model = np.array(logprobs)
    if is_channel(record):
        model = (model - model.mean()) / max(float(model.std()), _LEAST_DEVIATION)
    return np.stack([model, record["choice_scores"]], axis=1)


def _maximum_likelihood(examples: Sequence[tuple[np.ndarray, np.ndarray]], first: np.ndarray) -> np.ndarray:
    """Return the weights float64[F] of scores [C, F] by Newton's method, from a prior around `first`."""
    weights = first.copy()
    for _ in range(_MOST_STEPS):
        gradient, curvature = -_PRIOR * (weights - first), _PRIOR * np.eye(len(first))
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
    return weights


def brier_scores(records: Sequence[Row], rows: Sequence[Row], weights: Weights) -> np.ndarray:
    """Return the Brier score (Brier 1950) of each record's choices, halved, so that 0 is best and 1 worst.

    It is half of the sum of squared differences between the probabilities of the choices and what is right.

    Args:
        records: the held-out records, with `choice_scores` and at least one right choice.
        rows: the model's answers to them, with `choice_logprobs`.
        weights: of model and fusion.
    """
    answers = {row["id"]: row["choice_logprobs"] for row in rows}
    found = np.zeros(len(records))
    for number, record in enumerate(records):
        right = np.isin(record["choices"], record["gold"])
        p = _softmax(_scores(record, answers[record["id"]]) @ [weights.model, weights.learned])
        found[number] = np.square(p - right / right.sum()).sum() / 2
    return found


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
            scores = _scores(record, answers[name]) @ [weights.model, weights.learned]
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
