"""Fitting: drawn candidates, the threshold of second parents, cross-fitting, and the stored ranker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from retrieval.search.learned.features import Features, FeatureSpace
from retrieval.search.learned.fit_ranker import (
    DRAWN,
    POOL,
    Examples,
    draw_candidates,
    fit_ranker,
    fit_temperature,
    link_measures,
    second_parent_threshold,
    tempered,
)
from retrieval.search.learned.listwise_mlp import Training
from retrieval.search.learned.reply_ranker import ABOUT, WEIGHTS, ReplyRanker, load_ranker, save_ranker

SPACE = FeatureSpace(("bm25",), ("hi", "so"))
N_PAIR, N_MESSAGE = len(SPACE.pair_groups), len(SPACE.message_groups)
QUICK = Training(hidden=(16, 8), epochs=8, batch=32, dropout=0.05)


def message(rng: np.random.Generator, n: int) -> tuple[Features, list[int]]:
    """A message that answers the candidate with the largest cosine, or none if all are low."""
    pairs, messages = np.zeros((n, N_PAIR), dtype=np.float32), np.zeros((1, N_MESSAGE), dtype=np.float32)
    pairs[:, ::4] = rng.normal(size=pairs[:, ::4].shape)
    cosine = rng.normal(size=n).astype(np.float32)
    pairs[:, list(SPACE.pair_groups).index("cosine")] = cosine
    messages[0, list(SPACE.message_groups).index("best_cosine")] = cosine.max()
    features = Features(pairs, np.arange(n), np.zeros((n, 0), dtype=np.float32), messages)
    return features, [] if cosine.max() < 1 else [int(cosine.argmax())]


def examples_of(n: int, wrong_fold: int = -1) -> Examples:
    """Messages in three folds, with wrong answers in one of them."""
    rng = np.random.default_rng(0)
    examples = Examples(SPACE, 0)
    for number in range(n):
        size = int(rng.integers(1, POOL))
        features, parents = message(rng, size)
        examples.add(features, np.array([size]), [[0] if number % 3 == wrong_fold else parents], number % 3)
    return examples


def fit(threads: int) -> tuple[ReplyRanker, dict]:
    with threadpool_limits(threads):
        return fit_ranker(examples_of(600), QUICK, lambda done, total: None)


def test_drawn_candidates_stand_for_those_that_were_not_drawn() -> None:
    pool = -np.arange(40, dtype=np.float32)
    chosen, offsets = draw_candidates(pool, [2, 33], np.random.default_rng(0).random(40))
    assert chosen[:POOL].tolist() == list(range(POOL)) and chosen[POOL] == 33
    assert len(set(chosen.tolist())) == len(chosen) == POOL + DRAWN
    # 40 candidates less the pool and the parent: 24 others, for which two drawn ones stand.
    assert offsets[: POOL + 1].tolist() == [0.0] * (POOL + 1)
    assert offsets[POOL + 1 :] == pytest.approx(np.log([12, 12]))
    few, none = draw_candidates(pool[:3], [1], np.zeros(3))
    assert sorted(few.tolist()) == [0, 1, 2] and none.tolist() == [0, 0, 0]


def test_links_are_counted_pair_by_pair() -> None:
    p = np.array([[0.1, 0.6, 0.3], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.05, 0.5, 0.45]])
    targets = np.array([[0, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=np.float32)
    # Said: 1 and 2; start; start; 1 and 2. Right of them: 1, 2, start, 1.
    found = link_measures(np.log(p), targets, 0.3)
    assert found["link_precision"] == pytest.approx(4 / 6, abs=1e-6)
    assert found["link_recall"] == pytest.approx(4 / 5, abs=1e-6)
    assert found["link_f1"] == pytest.approx(8 / 11, abs=1e-6)
    # The best candidate of the three replies is right in all, also where a start is likelier.
    assert found["reply@1"] == 1 and found["start_f1"] == pytest.approx(2 / 3, abs=1e-6)
    one = link_measures(np.log(p), targets, 1.0)
    assert (one["link_precision"], one["link_recall"]) == (0.75, 0.6)
    threshold, best = second_parent_threshold(np.log(p), targets)
    every = [link_measures(np.log(p), targets, number / 100)["link_f1"] for number in (100, *range(15, 51))]
    assert best["link_f1"] == max(every) == link_measures(np.log(p), targets, threshold)["link_f1"]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_the_temperature_of_scores_that_are_too_sure_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    scores, offsets = rng.normal(size=(4000, 5)) * 2, np.zeros((4000, 5), np.float32)
    # The last candidate stands for three, and some messages have four candidates.
    offsets[:, 4] = np.log(3)
    scores[::7, 4] = -np.inf
    right = np.exp(scores + offsets)
    right /= right.sum(axis=1, keepdims=True)
    drawn = (rng.random((4000, 1)) < right.cumsum(axis=1)).argmax(axis=1)
    targets = np.eye(5, dtype=np.float32)[drawn]
    with np.errstate(divide="ignore"):  # minus infinity for padding
        sure = tempered(np.log(right) - offsets, offsets, 1 / temperature)
    found = fit_temperature(sure, offsets, targets)
    assert found == pytest.approx(temperature, rel=0.06)
    again = tempered(sure, offsets, found)
    sums = np.where(np.isfinite(again), np.exp(again + offsets), 0).sum(axis=1)
    assert sums == pytest.approx(np.ones(4000)) and np.array_equal(np.isinf(again), np.isinf(scores))


def test_a_fitted_ranker_ranks_and_repeats_whatever_the_threads(tmp_path: Path) -> None:
    ranker, measures = fit(1)
    again, _ = fit(4)
    for name, one in (("one", ranker), ("two", again)):
        (tmp_path / name).mkdir()
        save_ranker(one, tmp_path / name, measures)
    for file in (WEIGHTS, ABOUT):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert measures["messages"] == 600 and measures["folds"] == len(ranker.models) == 3
    assert measures["reply@1"] > 0.7 > 0.5 > measures["without"]["overlap"]["reply@1"]
    loaded = load_ranker(tmp_path / "one")
    rng = np.random.default_rng(9)
    right = 0
    for _ in range(50):
        features, parents = message(rng, 12)
        found = loaded.log_probabilities(features)
        assert found.tolist() == ranker.log_probabilities(features).tolist()
        assert np.exp(found).sum() == pytest.approx(1, abs=1e-4)
        right += loaded.links(found)[0] in [place + 1 for place in parents or [-1]]
    assert right >= 35


def test_a_thread_is_ranked_by_the_perceptron_that_has_not_seen_it() -> None:
    ranker, _ = fit_ranker(examples_of(120), QUICK, lambda done, total: None)
    features, _ = message(np.random.default_rng(1), 8)
    apart = replace(ranker, temperature=1.0)
    each = [apart.log_probabilities(features, fold) for fold in range(3)]
    mean = np.log(np.exp(each).mean(axis=0))
    assert ranker.log_probabilities(features) == pytest.approx(mean, abs=1e-4)
    # Other answers in fold 1 change all perceptrons but that of fold 1.
    other, _ = fit_ranker(examples_of(120, wrong_fold=1), QUICK, lambda done, total: None)
    same = [
        all(np.array_equal(a, b) for a, b in zip(one.arrays(), two.arrays(), strict=True))
        for one, two in zip(ranker.models, other.models, strict=True)
    ]
    assert same == [False, True, False]
