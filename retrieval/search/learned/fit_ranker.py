"""Fit a `ReplyRanker` on messages whose parents are known, and measure it on messages it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval.search.compiled import compiled
from retrieval.search.cores import cores
from retrieval.search.learned.features import Features, FeatureSpace
from retrieval.search.learned.listwise_mlp import (
    LIST_ARRAYS,
    Lists,
    Training,
    Weights,
    log_softmax,
    scores_of,
    train,
)
from retrieval.search.learned.reply_ranker import ReplyRanker, Scale

#: Candidates of a message that it is fitted on: the best of `pool_scores`, and some of the others, drawn.
#: The pool has 98 % of the parents in IRC. A drawn candidate stands for all that were not drawn (sampled
#: softmax), so that the ranker may rank all candidates, not only those of the pool.
POOL = 15
DRAWN = 3
FOLDS = 5
#: Messages on which scales, thresholds and groups of features are measured at most, evenly spread.
MEASURED = 20_000
_THRESHOLDS = tuple(number / 100 for number in range(50, 14, -1))
#: Messages that are scored at a time, which bounds the memory.
_AT_A_TIME = 512


@dataclass
class Examples:
    """Messages to fit on, added one by one. Features are kept in half precision: a message takes 6 KB.

    Attributes:
        space: the features.
        seed: seed of the drawn candidates.
    """

    space: FeatureSpace
    seed: int
    _blocks: list[Lists] = field(default_factory=list)
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
        pool = pool_scores(features.core, list(self.space.pair_groups))
        # By the number of the first message, so that messages added before decide nothing but this number.
        draws = np.random.default_rng([self.seed, len(self)]).random(len(pool))
        shape = len(sizes), 1 + POOL + DRAWN
        rows = np.zeros(shape, dtype=np.int64)
        present, offsets = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.float32)
        targets = np.zeros(shape, dtype=np.float32)
        ends = np.cumsum(sizes)
        for number, (end, size) in enumerate(zip(ends.tolist(), sizes.tolist(), strict=True)):
            low, right = end - size, list(parents[number])
            chosen, stands_for = draw_candidates(pool[low:end], right, draws[low:end])
            n = 1 + len(chosen)
            rows[number, 1:n], offsets[number, 1:n] = low + chosen, stands_for
            present[number, :n] = True
            targets[number, 0] = not right
            for place in right:
                targets[number, 1:n] += chosen == place
        pairs = np.zeros((*shape, len(self.space.pair_groups) + 1), dtype=np.float16)
        pairs[..., :-1] = features.of_pairs(rows)
        pairs[~present] = 0
        targets /= targets.sum(axis=1, keepdims=True)
        self._blocks.append(Lists(pairs, features.messages.astype(np.float16), present, offsets, targets))
        self._folds += [fold] * len(sizes)

    def lists(self) -> tuple[Lists, np.ndarray]:
        """Return the messages with padded candidates, the start first, and their folds int64[M].

        The features are raw, in half precision, with a last column for the mark of the start. The examples
        are empty afterwards, because two copies would take twice the memory.
        """
        first, folds = self._blocks[0], np.array(self._folds)
        whole = Lists(
            *(
                np.empty((len(folds), *array.shape[1:]), dtype=array.dtype)
                for array in (getattr(first, name) for name in LIST_ARRAYS)
            )
        )
        end = len(folds)
        while self._blocks:
            block = self._blocks.pop()
            for name in LIST_ARRAYS:
                getattr(whole, name)[end - len(block) : end] = getattr(block, name)
            end -= len(block)
        self._folds.clear()
        return whole, folds


def pool_scores(pairs: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return float32[P], a fixed score that only chooses the candidates to fit on.

    Args:
        pairs: float32[P, F], features of pairs.
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
    pool: np.ndarray, parents: Sequence[int], draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the candidates of a message to fit on: the best ones, its parents, and some of the others.

    Args:
        pool: float32[N], `pool_scores` of its candidates.
        parents: places of the candidates that it answers.
        draws: float64[N], random numbers; of the others, those with the smallest ones are chosen.

    Returns:
        (places int64[C], offsets float32[C]): the offset of a drawn candidate is the logarithm of the number
        of candidates that it stands for.
    """
    order = np.argsort(-pool, kind="stable")
    best, rest = order[:POOL], order[POOL:]
    outside = [place for place in parents if place not in best][:DRAWN]
    if outside:
        rest = rest[~np.isin(rest, outside)]
    drawn = rest[np.argsort(draws[rest], kind="stable")[: DRAWN - len(outside)]]
    offsets = np.zeros(len(best) + len(outside) + len(drawn), dtype=np.float32)
    if len(drawn):
        offsets[-len(drawn) :] = np.log(len(rest) / len(drawn))
    return np.concatenate([best, np.array(outside, dtype=np.int64), drawn]), offsets


@dataclass(frozen=True)
class ScaledExamples:
    """Messages to fit on, with scaled features in half precision.

    Attributes:
        lists: the M messages with their candidates, the start first.
        folds: int64[M], fold of each.
        scale: means and deviations of the raw features.
    """

    lists: Lists
    folds: np.ndarray
    scale: Scale

    @property
    def fold_numbers(self) -> list[int]:
        """The numbers of the folds, ascending."""
        return sorted(set(self.folds.tolist()))


def scaled_examples(examples: Examples) -> ScaledExamples:
    """Scale the features of all messages. The examples are empty afterwards."""
    lists, folds = examples.lists()
    scale = _scale_of(lists)
    # A few at a time, which bounds the memory.
    for at in range(0, len(lists), _AT_A_TIME):
        part = slice(at, at + _AT_A_TIME)
        lists.pairs[part] = scale.pairs(lists.pairs[part, :, :-1].astype(np.float32))
        lists.messages[part] = scale.messages(lists.messages[part].astype(np.float32))
    lists.pairs[~lists.present] = 0
    lists.pairs[:, 0] = scale.start()
    return ScaledExamples(lists, folds, scale)


def fit_perceptrons(
    data: ScaledExamples,
    seed: int,
    training: Training,
    folds: Sequence[int],
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Weights]:
    """Fit one perceptron for each of some folds, on the messages of all other folds.

    Args:
        data: the messages, in at least two folds.
        seed: seed of first weights, order and dropout.
        training: settings of the perceptrons.
        folds: numbers of the folds.
        on_model: called with (perceptrons fitted, all).
    """

    def fit(number: int) -> Weights:
        rows = np.flatnonzero(data.folds != number)
        rng = np.random.default_rng([seed, number])
        return train(lambda at: _in_float32(data.lists, rows[at]), len(rows), training, rng)

    models: dict[int, Weights] = {}
    # One BLAS thread for each perceptron: a matrix product on several threads has other last bits, which grow
    # with every step. The perceptrons are fitted side by side instead.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(cores(), len(folds))) as pool:
        for fold, model in zip(folds, pool.map(fit, folds), strict=True):
            models[fold] = model
            on_model(len(models), len(folds))
    return models


def fit_ranker(
    examples: Examples, training: Training, on_model: Callable[[int, int], None]
) -> tuple[ReplyRanker, dict[str, Any]]:
    """Fit a ranker, and measure it on messages that the perceptron in question has not seen.

    Args:
        examples: the messages of the training split, in at least two folds.
        training: settings of the perceptrons.
        on_model: called with (perceptrons fitted, all).
    """
    space, seed = examples.space, examples.seed
    data = scaled_examples(examples)
    models = fit_perceptrons(data, seed, training, data.fold_numbers, on_model)
    rows = _measured(len(data.lists))
    targets = data.lists.targets[rows]
    offsets = data.lists.offsets[rows]
    log_p = held_back(data, models, rows)
    temperature = fit_temperature(log_p, offsets, targets)
    threshold, links = second_parent_threshold(tempered(log_p, offsets, temperature), targets)

    def without(group: str) -> dict[str, Any]:
        found = held_back(data, models, rows, (space, group))
        return link_measures(tempered(found, offsets, temperature), targets, threshold)

    measures = {
        "messages": len(data.folds),
        "folds": len(models),
        "second_parent": threshold,
        "temperature": temperature,
        **links,
        "without": {group: without(group) for group in dict.fromkeys(space.pair_groups.values())},
    }
    return ReplyRanker(space, data.scale, tuple(models.values()), threshold, temperature), measures


def fit_temperature(log_p: np.ndarray, offsets: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature with which held-back messages have the greatest likelihood.

    Args:
        log_p: float64[M, K], what `held_back` returns.
        offsets: float32[M, K], log of the number of candidates that each stands for.
        targets: float32[M, K], the share of each candidate in what is right.
    """
    from scipy.optimize import minimize_scalar

    right = targets > 0

    def loss(log_temperature: float) -> float:
        found = tempered(log_p, offsets, float(np.exp(log_temperature)))
        return -float((targets[right] * found[right]).sum())

    # Rounded, since the last bits of the sums depend on the number of cores.
    best = minimize_scalar(loss, bounds=(np.log(0.2), np.log(5.0)), method="bounded").x
    return round(float(np.exp(best)), 3)


def tempered(log_p: np.ndarray, offsets: np.ndarray, temperature: float) -> np.ndarray:
    """Return log-probabilities [M, K] of scores that are divided by a temperature, see `fit_temperature`.

    Args:
        log_p: float64[M, K], what `held_back` returns.
        offsets: float32[M, K], log of the number of candidates that each stands for.
        temperature: the divisor.
    """
    present = log_p > -np.inf
    return log_softmax(np.where(present, log_p / temperature, 0) + offsets, present) - offsets


def held_back(
    data: ScaledExamples,
    models: Mapping[int, Weights],
    rows: np.ndarray,
    without: tuple[FeatureSpace, str] | None = None,
) -> np.ndarray:
    """Return float64[R, K]: log-probabilities of messages by the perceptron that has not seen them.

    The first is that of the start. Padding has minus infinity.

    Args:
        data: all messages.
        models: perceptrons by the fold that they have not seen.
        rows: int64[R], messages of these folds.
        without: the features, and a group of them that is replaced by its mean; None: none.
    """
    log_p = np.full((len(rows), data.lists.present.shape[1]), -np.inf)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores()) as pool:

        def score(fold: int, part: np.ndarray) -> None:
            batch = _in_float32(data.lists, rows[part])
            if without is not None:
                # The mean, after scaling. Behind the features of a pair stands the mark of the start.
                batch.pairs[..., :-1][..., _of_group(without[0].pair_groups, without[1])] = 0
                batch.messages[:, _of_group(without[0].message_groups, without[1])] = 0
            scores = scores_of(models[fold], batch.pairs, batch.messages) + batch.offsets
            # Of one candidate, not of all for which it stands.
            log_p[part] = log_softmax(scores, batch.present) - batch.offsets

        tasks = []
        for fold in models:
            mine = np.flatnonzero(data.folds[rows] == fold)
            parts = (mine[at : at + _AT_A_TIME] for at in range(0, len(mine), _AT_A_TIME))
            tasks += [pool.submit(score, fold, part) for part in parts]
        for task in tasks:
            task.result()
    return log_p


def _of_group(groups: Mapping[str, str], group: str) -> np.ndarray:
    return np.array([name == group for name in groups.values()], dtype=bool)


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
    """Return the means and deviations of the features."""
    rows = _measured(len(lists))
    present = lists.present[rows]
    present[:, 0] = False  # the start has no features
    pairs = lists.pairs[rows][present][:, :-1].astype(np.float64)
    messages = lists.messages[rows].astype(np.float64)
    return Scale(*_moments(pairs), *_moments(messages))


def _measured(n: int) -> np.ndarray:
    """Return the numbers of at most `MEASURED` of n messages, evenly spread."""
    return np.arange(0, n, -(-n // MEASURED))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    deviation = values.std(axis=0)
    # The deviation of a feature that is always the same is zero, and that of a rare word so small that the
    # word would get values of a hundred.
    return values.mean(axis=0).astype(np.float32), np.maximum(deviation, 0.05).astype(np.float32)


#: The number of each bit pattern in half precision. A table is several times as fast as numpy's conversion.
_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _in_float32(lists: Lists, rows: np.ndarray) -> Lists:
    """Return the messages at the given rows, with features in float32."""
    pairs = np.empty((len(rows), *lists.pairs.shape[1:]), dtype=np.float32)
    _look_up(lists.pairs.view(np.uint16), rows, _HALVES, pairs)
    others = (getattr(lists, name)[rows] for name in LIST_ARRAYS if name not in ("pairs", "messages"))
    return Lists(pairs, lists.messages[rows].astype(np.float32), *others)


@compiled
def _look_up(bits: np.ndarray, rows: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Fill an array with the numbers of bit patterns.

    Args:
        bits: uint16[M, K, F], the patterns.
        rows: int64[R], the rows that are looked up.
        table: float32[65536], the number of each pattern.
        out: float32[R, K, F], filled.
    """
    for number in range(len(rows)):
        row = bits[rows[number]]
        for k in range(row.shape[0]):
            for f in range(row.shape[1]):
                out[number, k, f] = table[row[k, f]]
