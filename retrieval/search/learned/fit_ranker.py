"""Fit a `ReplyRanker` on messages whose parents are known, and measure it on messages it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval.search.cores import cores
from retrieval.search.learned.features import Features, FeatureSpace
from retrieval.search.learned.listwise_mlp import Lists, Training, Weights, log_softmax, scores_of, train
from retrieval.search.learned.reply_ranker import ReplyRanker, Scale

#: Candidates of a message that it is fitted on: the best of `pool_scores`, and some of the others, drawn.
#: The pool has 98 % of the parents in IRC. A drawn candidate stands for all that were not drawn (sampled
#: softmax), so that the ranker may rank all candidates, not only those of the pool.
POOL = 15
DRAWN = 3
FOLDS = 5
#: Messages on which thresholds and groups of features are measured.
MEASURED = 5_000
_THRESHOLDS = tuple(number / 100 for number in range(50, 14, -1))
#: Messages that are scored at a time, which bounds the memory.
_AT_A_TIME = 512


@dataclass
class Examples:
    """Messages to fit on, added one by one. Features are kept in half precision: a message takes 5 KB.

    Attributes:
        space: the features.
        seed: seed of the drawn candidates.
    """

    space: FeatureSpace
    seed: int
    _pairs: list[np.ndarray] = field(default_factory=list)
    _messages: list[np.ndarray] = field(default_factory=list)
    _offsets: list[np.ndarray] = field(default_factory=list)
    _targets: list[np.ndarray] = field(default_factory=list)
    _folds: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._folds)

    def add(self, features: Features, sizes: np.ndarray, parents: Sequence[Sequence[int]], fold: int) -> None:
        """Add messages of one thread.

        Args:
            features: of M messages.
            sizes: int64[M], number of candidates of each message.
            parents: for each message the places, among its candidates, of those that it answers; none: it
                starts a conversation.
            fold: fold of the thread.
        """
        pool = pool_scores(features.pairs, list(self.space.pair_groups))
        ends = np.cumsum(sizes)
        for number, (end, size) in enumerate(zip(ends.tolist(), sizes.tolist(), strict=True)):
            # By the number of the message, so that messages added before decide nothing but this number.
            rng = np.random.default_rng([self.seed, len(self)])
            low = end - size
            chosen, offsets = draw_candidates(pool[low:end], parents[number], rng)
            self._pairs.append(features.pairs[low + chosen].astype(np.float16))
            self._messages.append(features.messages[number].astype(np.float16))
            self._offsets.append(offsets)
            right = np.isin(chosen, list(parents[number]))
            self._targets.append(np.concatenate([[not parents[number]], right]).astype(np.float32))
            self._folds.append(fold)

    def lists(self) -> tuple[Lists, np.ndarray]:
        """Return the messages with padded candidates, the start first, and their folds int64[M].

        The features are raw, in half precision, without the mark of the start.
        """
        n, width = len(self), 1 + POOL + DRAWN
        pairs = np.zeros((n, width, len(self.space.pair_groups)), dtype=np.float16)
        present, offsets = np.zeros((n, width), dtype=bool), np.zeros((n, width), dtype=np.float32)
        targets = np.zeros((n, width), dtype=np.float32)
        for number in range(n):
            size = len(self._pairs[number])
            pairs[number, 1 : 1 + size] = self._pairs[number]
            present[number, : 1 + size] = True
            offsets[number, 1 : 1 + size] = self._offsets[number]
            targets[number, : 1 + size] = self._targets[number] / self._targets[number].sum()
        self._pairs.clear()
        return Lists(pairs, np.array(self._messages), present, offsets, targets), np.array(self._folds)


def pool_scores(pairs: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return float32[P], a fixed score that only chooses the candidates to fit on.

    Args:
        pairs: float32[P, F], features.
        names: names of the features.
    """
    weights = {
        "log_distance": -1.0,
        "newest_of_named": 2.5,
        "named": 1.0,
        "newest_of_own": 1.5,
        "same_author": 0.5,
        "newest_that_names_me": 2.5,
        "names_me": 1.0,
        "author_is_partner": 0.75,
        "newest_of_author": 1.0,
        "cosine": 2.0,
        "newest_with_rarest": 0.75,
        "log_shared_runs": 0.3,
        "is_opening": 1.0,
    }
    total = np.zeros(len(pairs), dtype=np.float32)
    for name, weight in weights.items():
        total += pairs[:, names.index(name)] * np.float32(weight)
    return total


def draw_candidates(
    pool: np.ndarray, parents: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the candidates of a message to fit on: the best ones, its parents, and some of the others.

    Args:
        pool: float32[N], `pool_scores` of its candidates.
        parents: places of the candidates that it answers.
        rng: draws the others.

    Returns:
        (places int64[C], offsets float32[C]): the offset of a drawn candidate is the logarithm of the number
        of candidates that it stands for.
    """
    order = np.argsort(-pool, kind="stable")
    best = order[:POOL]
    outside = [place for place in parents if place not in best][:DRAWN]
    rest = np.setdiff1d(order[POOL:], outside)
    drawn = rng.choice(rest, min(DRAWN - len(outside), len(rest)), replace=False)
    offsets = np.zeros(len(best) + len(outside) + len(drawn), dtype=np.float32)
    if len(drawn):
        offsets[-len(drawn) :] = np.log(len(rest) / len(drawn))
    return np.concatenate([best, np.array(outside, dtype=np.int64), drawn]).astype(np.int64), offsets


def fit_ranker(
    examples: Examples, training: Training, on_model: Callable[[int, int], None]
) -> tuple[ReplyRanker, dict[str, Any]]:
    """Fit one perceptron for each fold, on the messages of the other folds.

    Args:
        examples: the messages of the training split, in at least two folds.
        training: settings of the perceptrons.
        on_model: called with (perceptrons fitted, all).

    Returns:
        the ranker, and its measures on messages that the perceptron in question has not seen.
    """
    lists, folds = examples.lists()
    scale = _scale_of(lists)
    numbers = sorted(set(folds.tolist()))

    def fit(number: int) -> Weights:
        rows = np.flatnonzero(folds != number)
        rng = np.random.default_rng([examples.seed, number])
        return train(lambda at: _scaled(lists, scale, rows[at]), len(rows), training, rng)

    models: list[Weights] = []
    # One BLAS thread for each perceptron: a matrix product on several threads has other last bits, which grow
    # with every step. The perceptrons are fitted side by side instead.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(cores(), len(numbers))) as pool:
        for model in pool.map(fit, numbers):
            models.append(model)
            on_model(len(models), len(numbers))
        ranker = ReplyRanker(examples.space, scale, tuple(models), 1.0)
        held = _held_back(lists, folds, ranker)
        threshold, links = second_parent_threshold(held.log_p, held.targets)
        measures = {
            "messages": len(folds),
            "folds": len(numbers),
            "second_parent": threshold,
            **links,
            "without": {
                group: link_measures(_held_back(lists, folds, ranker, group).log_p, held.targets, threshold)
                for group in dict.fromkeys(examples.space.pair_groups.values())
            },
        }
    return replace(ranker, second_parent=threshold), measures


def second_parent_threshold(log_p: np.ndarray, targets: np.ndarray) -> tuple[float, dict[str, Any]]:
    """Return the probability from which a second message counts as answered too, and the measures with it.

    The threshold is the one with the best F1 of links; 1 (never) if none is better than no second message.

    Args:
        log_p: float[M, K], log-probabilities of the start and of the candidates; padding is minus infinity.
        targets: float32[M, K], above zero for what is right.
    """
    found = [(threshold, link_measures(log_p, targets, threshold)) for threshold in (1.0, *_THRESHOLDS)]
    # The first of equal ones: `max` keeps it.
    return max(found, key=lambda pair: pair[1]["link_f1"])


def link_measures(log_p: np.ndarray, targets: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return precision, recall and F1 of links, and the share of replies whose best candidate is right.

    A message that starts a conversation counts as a link to itself, as in the evaluation of Kummerfeld et al.
    (2019).

    Args:
        log_p: float[M, K], log-probabilities of the start and of the candidates; padding is minus infinity.
        targets: float32[M, K], above zero for what is right.
        threshold: probability from which a second message counts.
    """
    right = targets > 0
    rows = np.arange(len(log_p))
    order = np.argsort(-log_p, axis=1, kind="stable")[:, :2]
    first, second = order[:, 0], order[:, 1]
    both = (first != 0) & (second != 0) & (log_p[rows, second] >= np.log(threshold))
    matched = int(right[rows, first].sum() + (right[rows, second] & both).sum())
    said, gold = len(rows) + int(both.sum()), int(right.sum())
    replies = ~right[:, 0]
    best = np.argmax(log_p[replies, 1:], axis=1) + 1
    return {
        "link_precision": _share(matched, said),
        "link_recall": _share(matched, gold),
        "link_f1": _share(2 * matched, said + gold),
        "reply@1": _share(int(right[replies][np.arange(len(best)), best].sum()), len(best)),
        "start_f1": _share(
            2 * int(((first == 0) & right[:, 0]).sum()), int((first == 0).sum() + right[:, 0].sum())
        ),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _scale_of(lists: Lists) -> Scale:
    """Return the means and deviations of the features of some messages, evenly spread."""
    rows = np.arange(0, len(lists), max(1, len(lists) // MEASURED))
    present = lists.present[rows]
    present[:, 0] = False  # the start has no features
    pairs = lists.pairs[rows][present].astype(np.float64)
    messages = lists.messages[rows].astype(np.float64)
    return Scale(*_moments(pairs), *_moments(messages))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    deviation = values.std(axis=0)
    # The deviation of a feature that is always the same is zero, and that of a rare word so small that the
    # word would get values of a hundred.
    return values.mean(axis=0).astype(np.float32), np.maximum(deviation, 0.05).astype(np.float32)


def _scaled(lists: Lists, scale: Scale, rows: np.ndarray) -> Lists:
    """Return messages by number, scaled, with the mark of the start."""
    part = lists.take(rows)
    pairs = scale.pairs(part.pairs.astype(np.float32))
    pairs[~part.present] = 0
    pairs[:, 0] = scale.start()
    return replace(part, pairs=pairs, messages=scale.messages(part.messages.astype(np.float32)))


@dataclass(frozen=True)
class _HeldBack:
    log_p: np.ndarray
    targets: np.ndarray


def _held_back(lists: Lists, folds: np.ndarray, ranker: ReplyRanker, without: str | None = None) -> _HeldBack:
    """Return the log-probabilities of messages by the perceptron that has not seen them.

    Args:
        lists: all messages.
        folds: int64[M], fold of each.
        ranker: the fitted perceptrons.
        without: a group of features that is replaced by its mean; None: none.
    """
    pair_off, message_off = (
        np.array([group == without for group in groups.values()], dtype=bool)
        for groups in (ranker.space.pair_groups, ranker.space.message_groups)
    )
    rows = np.arange(0, len(lists), max(1, len(lists) // MEASURED))
    log_p = np.full((len(rows), lists.present.shape[1]), -np.inf)
    for number, model in zip(sorted(set(folds.tolist())), ranker.models, strict=True):
        mine = np.flatnonzero(folds[rows] == number)
        for at in range(0, len(mine), _AT_A_TIME):
            part = mine[at : at + _AT_A_TIME]
            batch = _scaled(lists, ranker.scale, rows[part])
            batch.pairs[..., :-1][..., pair_off] = 0  # the mean, after scaling
            batch.messages[:, message_off] = 0
            scores = scores_of(model, batch.pairs, batch.messages) + batch.offsets
            # Of one candidate, not of all for which it stands.
            log_p[part] = log_softmax(scores, batch.present) - batch.offsets
    return _HeldBack(log_p, lists.targets[rows])
