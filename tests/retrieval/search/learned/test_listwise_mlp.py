"""The perceptron: gradients against finite differences, the schedule, and that it learns and repeats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.search.learned.listwise_mlp import (
    Dropout,
    Lists,
    Training,
    Weights,
    initial_weights,
    log_softmax,
    loss_and_gradients,
    one_cycle,
    scores_of,
    train,
)


def lists_of(n: int, k: int, seed: int = 0) -> Lists:
    """Messages with 4 + 1 features, of which the right candidate has the largest sum of two."""
    rng = np.random.default_rng(seed)
    pairs = rng.normal(size=(n, k, 4)).astype(np.float32)
    present = np.arange(k) < rng.integers(2, k + 1, size=(n, 1))
    best = np.where(present, pairs[..., 0] - pairs[..., 2], -np.inf).argmax(axis=1)
    targets = np.eye(k, dtype=np.float32)[best]
    messages = rng.normal(size=(n, 1)).astype(np.float32)
    return Lists(pairs, messages, present, np.zeros((n, k), np.float32), targets)


@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_equal_finite_differences(dropout: bool) -> None:
    rng = np.random.default_rng(1)
    lists = lists_of(6, 5)
    offsets, targets = rng.random((6, 5)), np.where(lists.present, rng.random((6, 5)), 0)
    lists = replace(
        lists,
        pairs=lists.pairs.astype(np.float64),
        messages=lists.messages.astype(np.float64),
        offsets=offsets,
        targets=targets / targets.sum(axis=1, keepdims=True),
    )
    weights = Weights(*(array.astype(np.float64) for array in initial_weights(4, 1, (7, 3), rng).arrays()))
    masks = Dropout(rng.random((30, 7)) < 0.8, rng.random((30, 3)) < 0.8, 1.25) if dropout else None
    _, gradients = loss_and_gradients(weights, lists, masks)
    step = 1e-6
    for array, gradient in zip(weights.arrays(), gradients.arrays(), strict=True):
        assert array.shape == gradient.shape
        for at in np.ndindex(array.shape):
            kept = array[at]
            array[at] = kept + step
            above = loss_and_gradients(weights, lists, masks)[0]
            array[at] = kept - step
            below = loss_and_gradients(weights, lists, masks)[0]
            array[at] = kept
            assert gradient[at] == pytest.approx((above - below) / (2 * step), abs=1e-7)


def test_it_learns_and_gives_the_same_bits_again() -> None:
    lists, unseen = lists_of(1500, 6), lists_of(400, 6, seed=5)
    settings = Training(hidden=(16, 8), epochs=5, batch=32, dropout=0.05)
    first, second = (train(lists.take, len(lists), settings, np.random.default_rng(3)) for _ in range(2))
    assert [array.tobytes() for array in first.arrays()] == [array.tobytes() for array in second.arrays()]
    scores = scores_of(first, unseen.pairs, unseen.messages)
    right = log_softmax(scores, unseen.present).argmax(axis=1) == unseen.targets.argmax(axis=1)
    assert right.mean() > 0.9


def test_softmax_leaves_padding_out() -> None:
    present = np.array([[True, False, True]])
    log_p = log_softmax(np.array([[1.0, 9.0, 1.0]]), present)
    assert np.exp(log_p).tolist() == [[0.5, 0.0, 0.5]]


def test_the_schedule_rises_and_falls() -> None:
    rates = np.array([one_cycle(step, 100, 5e-3) for step in range(100)])
    assert rates[0, 0] == pytest.approx(2e-4) and rates[-1, 0] == pytest.approx(2e-8)
    assert rates[:, 0].max() == pytest.approx(5e-3) and int(rates[:, 0].argmax()) == 29
    assert rates[0, 1] == pytest.approx(0.95) and rates[:, 1].min() == pytest.approx(0.85)


@pytest.mark.slow
def test_the_schedule_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rates = [one_cycle(step, 100, 5e-3) for step in range(100)]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=100, final_div_factor=1e4)
    for step in range(100):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"][0]) == pytest.approx(rates[step], rel=1e-6)
        optimizer.step()
        if step < 99:
            schedule.step()
