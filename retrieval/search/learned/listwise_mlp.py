"""A small multi-layer perceptron that scores the candidates of a message, trained by a listwise softmax.

    scores = w3 · relu(W2ᵀ relu(W1ᵀ pair + V1ᵀ message + b1) + b2)
    loss   = - Σ target · log softmax(scores)

The softmax runs over the candidates of one message (ListNet with the top-one loss, Cao et al. 2007). It is
written in numpy, because no library that this package may import offers it: scikit-learn's perceptron scores
rows one by one, with no softmax over a list, and torch and JAX stay out of the building of records. The tests
check the gradients against finite differences.

Training uses AdamW (Loshchilov and Hutter 2019) with the one-cycle schedule (Smith and Topin 2018) in
float32. On one BLAS thread (see `fit_ranker`), equal input gives equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from retrieval.search.compiled import compiled

#: Decay of AdamW's second moment.
_SECOND = 0.999


@dataclass(frozen=True)
class Lists:
    """M messages with K candidates each, padded to the same K.

    Attributes:
        pairs: float32[M, K, P], features of each candidate.
        messages: float32[M, Q], features of each message.
        present: bool[M, K], False for padding.
        offsets: float32[M, K], added to the scores. A candidate that stands for n others of its kind, which
            were not drawn, has log(n).
        targets: float32[M, K], the share of each candidate in the right answer; a row sums to one.
    """

    pairs: np.ndarray
    messages: np.ndarray
    present: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.messages)

    def take(self, rows: np.ndarray) -> Lists:
        """Return the messages at the given rows."""
        return Lists(*(getattr(self, name)[rows] for name in LIST_ARRAYS))


#: Names of the arrays of `Lists`.
LIST_ARRAYS = tuple(field.name for field in fields(Lists))


@dataclass(frozen=True)
class Weights:
    """The parameters: float32 arrays of P + Q inputs, H1 and H2 hidden units."""

    w1: np.ndarray
    v1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    w3: np.ndarray

    def arrays(self) -> list[np.ndarray]:
        """Return all arrays, in a fixed order."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Training:
    """The settings of a training run."""

    hidden: tuple[int, int] = (96, 48)
    epochs: int = 8
    batch: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    dropout: float = 0.25


def initial_weights(
    n_pair: int, n_message: int, hidden: tuple[int, int], rng: np.random.Generator
) -> Weights:
    """Draw weights with the variance of He et al. (2015): 2 / (number of inputs).

    Args:
        n_pair: P, number of features of a candidate.
        n_message: Q, number of features of a message.
        hidden: H1 and H2, numbers of hidden units.
        rng: draws the weights.
    """
    first, second = hidden

    def draw(inputs: int, *shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * np.sqrt(2.0 / inputs)).astype(np.float32)

    both = n_pair + n_message
    return Weights(
        draw(both, n_pair, first),
        draw(both, n_message, first),
        np.zeros(first, dtype=np.float32),
        draw(first, first, second),
        np.zeros(second, dtype=np.float32),
        draw(second, second),
    )


def scores_of(weights: Weights, pairs: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """Return the scores [M, K] of candidates.

    Args:
        weights: the parameters.
        pairs: [M, K, P], features of each candidate.
        messages: [M, Q], features of each message.
    """
    first = np.maximum(pairs @ weights.w1 + (messages @ weights.v1)[:, None, :] + weights.b1, 0)
    second = np.maximum(first @ weights.w2 + weights.b2, 0)
    return second @ weights.w3


def log_softmax(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax over the last axis, where `present`; minus infinity elsewhere."""
    kept = np.where(present, scores, -np.inf)
    top = kept.max(axis=-1, keepdims=True)
    return kept - top - np.log(np.exp(kept - top).sum(axis=-1, keepdims=True))


class Dropout(NamedTuple):
    """Which hidden units of each candidate stay, bool[M · K, H1] and bool[M · K, H2], and their factor."""

    first: np.ndarray
    second: np.ndarray
    factor: float


def loss_and_gradients(
    weights: Weights, lists: Lists, dropout: Dropout | None = None
) -> tuple[float, Weights]:
    """Return the mean loss of the messages and its gradient for each parameter.

    Args:
        weights: the parameters.
        lists: the messages.
        dropout: dropout of the hidden units; None: none.
    """
    m, k, p = lists.pairs.shape
    flat = lists.pairs.reshape(m * k, p)
    if dropout is None:
        first_kept, second_kept = (np.ones((m * k, len(b)), dtype=bool) for b in (weights.b1, weights.b2))
        dropout = Dropout(first_kept, second_kept, 1.0)
    factor = flat.dtype.type(dropout.factor)
    first = flat @ weights.w1
    _rectify(first, lists.messages @ weights.v1 + weights.b1, dropout.first, factor)
    second = first @ weights.w2
    _rectify(second, weights.b2[None], dropout.second, factor)
    scores = (second @ weights.w3).reshape(m, k) + lists.offsets
    log_p = log_softmax(scores, lists.present)
    # Padding has target 0 and logarithm minus infinity, whose product is not a number.
    loss = -float((lists.targets * np.where(lists.targets > 0, log_p, 0)).sum()) / m
    # d loss / d scores of a softmax with cross-entropy is p - target.
    d_scores = ((np.exp(log_p) - lists.targets) / m).astype(flat.dtype).reshape(-1)
    d_second = d_scores[:, None] * weights.w3
    _pass_back(d_second, second, factor)
    d_first = d_second @ weights.w2.T
    _pass_back(d_first, first, factor)
    by_message = d_first.reshape(m, k, -1).sum(axis=1)
    return loss, Weights(
        flat.T @ d_first,
        lists.messages.T @ by_message,
        by_message.sum(axis=0),
        first.T @ d_second,
        d_second.sum(axis=0),
        second.T @ d_scores,
    )


def train(
    take: Callable[[np.ndarray], Lists], n: int, settings: Training, rng: np.random.Generator
) -> Weights:
    """Fit the perceptron to messages whose answers are known.

    Args:
        take: returns the messages of the given numbers, with features in float32 of about unit size.
        n: number of messages.
        settings: sizes, schedule and regularisation.
        rng: draws the first weights, the order of the messages, and dropout.
    """
    first = take(np.zeros(1, dtype=np.int64))
    weights = initial_weights(first.pairs.shape[2], first.messages.shape[1], settings.hidden, rng)
    optimizer = _AdamW(weights, settings.weight_decay)
    batches = -(-n // settings.batch)
    total, step = settings.epochs * batches, 0
    for _ in range(settings.epochs):
        order = rng.permutation(n)
        for at in range(0, n, settings.batch):
            # Sorted: rows of a large array are read in order of memory.
            batch = take(np.sort(order[at : at + settings.batch]))
            _, gradients = loss_and_gradients(weights, batch, _dropout(batch, settings, rng))
            rate, momentum = one_cycle(step, total, settings.learning_rate)
            optimizer.step(gradients, rate, momentum)
            step += 1
    return weights


def one_cycle(step: int, total: int, peak: float) -> tuple[float, float]:
    """Return (learning rate, momentum) of a step: up to the peak in the first 30 % of the steps, then down.

    Both follow a cosine. The rate begins at peak / 25 and ends near 0. The momentum goes from 0.95 to 0.85
    and back.

    Args:
        step: number of the step, from 0.
        total: number of steps.
        peak: largest learning rate.
    """
    rise = max(0.3 * total - 1, 1e-9)
    if step <= rise:
        share, (rate, momentum) = step / rise, ((peak / 25, peak), (0.95, 0.85))
    else:
        share = (step - rise) / max(total - 1 - rise, 1e-9)
        rate, momentum = (peak, peak / 25e4), (0.85, 0.95)
    way = (1 - np.cos(np.pi * share)) / 2
    return rate[0] + (rate[1] - rate[0]) * way, momentum[0] + (momentum[1] - momentum[0]) * way


def _dropout(batch: Lists, settings: Training, rng: np.random.Generator) -> Dropout | None:
    if not settings.dropout:
        return None
    rows = batch.pairs.shape[0] * batch.pairs.shape[1]
    # Bytes are drawn eight at a time: a share of 1/256 is exact enough for dropout.
    kept = round((1 - settings.dropout) * 256)
    first, second = (
        np.frombuffer(rng.bytes(rows * units), dtype=np.uint8).reshape(rows, units) < kept
        for units in settings.hidden
    )
    return Dropout(first, second, 256 / kept)


# Compiled: numpy would pass over these arrays, the largest of a step, once for each operation.
@compiled
def _rectify(values: np.ndarray, bias: np.ndarray, kept: np.ndarray, factor: float) -> None:
    """Add the bias, set negative and dropped units to zero, and multiply the others with the factor.

    Args:
        values: [R, H], changed in place.
        bias: [B, H]; each row is the bias of R / B rows of the values.
        kept: bool[R, H], False for a dropped unit.
        factor: of the same type as the values.
    """
    each = len(values) // len(bias)
    zero = factor - factor  # of the factor's type: a literal would make the loop one of float64
    for row in range(len(values)):
        own = bias[row // each]
        for unit in range(values.shape[1]):
            value = (values[row, unit] + own[unit]) * factor
            values[row, unit] = value if kept[row, unit] and value > 0 else zero


@compiled
def _pass_back(gradient: np.ndarray, values: np.ndarray, factor: float) -> None:
    """Multiply a gradient with the factor where the unit passed its value on, and with zero elsewhere.

    Args:
        gradient: [R, H], changed in place.
        values: [R, H], the units behind `_rectify`; one that is 0, by the rectifier or by dropout, passes
            nothing back.
        factor: the factor of `_rectify`, of the same type as the values.
    """
    zero = factor - factor
    for row in range(len(values)):
        for unit in range(values.shape[1]):
            gradient[row, unit] *= factor if values[row, unit] > 0 else zero


class _AdamW:
    """AdamW with its two moments of each array."""

    def __init__(self, weights: Weights, decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self._moments = [(np.zeros_like(array), np.zeros_like(array)) for array in weights.arrays()]
        self._steps = 0

    def step(self, gradients: Weights, rate: float, momentum: float) -> None:
        """Change the weights in place by one step.

        Args:
            gradients: gradient of the loss for each weight.
            rate: learning rate.
            momentum: decay of the first moment.
        """
        self._steps += 1
        arrays = zip(self._weights.arrays(), gradients.arrays(), self._moments, strict=True)
        for array, gradient, (mean, square) in arrays:
            mean += (1 - momentum) * (gradient - mean)
            square += (1 - _SECOND) * (gradient * gradient - square)
            if array.ndim > 1:  # biases and the last layer are not decayed
                array *= 1 - rate * self._decay
            corrected = mean / (1 - momentum**self._steps)
            array -= rate * corrected / (np.sqrt(square / (1 - _SECOND**self._steps)) + 1e-8)
