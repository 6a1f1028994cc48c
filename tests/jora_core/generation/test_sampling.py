"""What may be drawn, against transformers' processors and a slow reference; how often; from what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.generation.sampling import (
    EXCLUDED,
    SamplingSettings,
    exclude_tokens,
    filtered,
    next_tokens,
    sampling_method,
    sampling_settings,
)
from jora_core.specs.answers import SamplingSpec

CASES = [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (0.5, 20, 0.6), (2.0, 400, 0.999), (1.0, 1, 1.0),
         (1.0, 0, 1e-6), (0.9, 3, 0.01)]  # fmt: skip
draw_jitted = jax.jit(next_tokens, static_argnames="method")


def spec(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> SamplingSpec:
    return SamplingSpec(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


def ours(logits: np.ndarray, settings: SamplingSettings) -> np.ndarray:
    """Probabilities after all cuts."""
    scores = jnp.asarray(logits) / settings.temperature
    return np.asarray(jax.nn.softmax(filtered(scores, settings.top_k, settings.top_p), axis=-1))


def slow(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """One row at a time, one token after the other, in float64."""
    out = np.zeros(logits.shape)
    for row, values in enumerate(logits.astype(np.float64) / temperature):
        left = sorted(range(len(values)), key=lambda i, values=values: (-values[i], i))
        if top_k:
            left = [i for i in left if values[i] >= values[left[min(top_k, len(left)) - 1]]]
        weights = np.exp(values[left] - values.max())
        weights /= weights.sum()
        kept, total = [], 0.0
        for i, weight in zip(left, weights, strict=True):
            if kept and total >= top_p and top_p < 1:
                break
            kept.append(i)
            total += weight
        out[row, kept] = np.exp(values[kept] - values.max())
    return out / out.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
def test_distribution_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(0, 2, (16, 300)).astype(np.float32)
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    scores = TopPLogitsWarper(top_p)(None, scores)
    found = ours(logits, sampling_settings(spec(temperature, top_k, top_p)))
    expected = torch.softmax(scores, dim=-1).numpy()
    assert ((found > 0) == (expected > 0)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found, slow(logits, temperature, top_k, top_p), rtol=1e-4, atol=1e-9)


def test_equally_likely_tokens() -> None:
    logits = np.asarray([[1.0, 3.0, 1.0, 3.0, 1.0, 0.0]], np.float32)
    # Top-k keeps all that are as likely as the k-th, top-p those of lower id.
    for top_k, top_p, kept in (
        (1, 1.0, [1, 3]),
        (3, 1.0, [0, 1, 2, 3, 4]),
        (0, 0.4, [1]),
        (0, 0.85, [0, 1, 3]),
    ):
        found = ours(logits, sampling_settings(spec(1.0, top_k, top_p)))
        assert np.flatnonzero(found[0]).tolist() == kept
        np.testing.assert_allclose(found, slow(logits, 1.0, top_k, top_p), rtol=1e-5)


def test_draws_have_the_probabilities() -> None:
    logits = np.random.default_rng(1).normal(0, 1.5, 24).astype(np.float32)
    draws = 20_000
    for settings in (spec(0.8, 10, 0.9, seed=5), spec(1.5, seed=6)):
        many = np.broadcast_to(logits, (draws, 24))
        tokens = draw_jitted(
            many,
            sampling_settings(settings),
            np.arange(draws, dtype=np.uint32),
            jnp.int32(3),
            sampling_method(settings),
        )
        expected = slow(logits[None], settings.temperature, settings.top_k, settings.top_p)[0]
        found = np.bincount(np.asarray(tokens), minlength=24) / draws
        assert (found[expected == 0] == 0).all()
        # Six standard deviations of each share; the seed is fixed, so it holds always or never.
        assert (np.abs(found - expected) <= 6 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_a_draw_follows_from_seed_number_and_step() -> None:
    logits = np.zeros((6, 1000), np.float32)
    numbers = np.asarray([4, 9, 1, 4, 7, 2], np.uint32)

    def draw(numbers: np.ndarray, step: int, seed: int) -> list[int]:
        settings = sampling_settings(spec(seed=seed))
        return np.asarray(
            draw_jitted(logits[: len(numbers)], settings, numbers, jnp.int32(step), "draw")
        ).tolist()

    all_six = draw(numbers, 0, 0)
    assert all_six[0] == all_six[3] and len(set(all_six)) == 5
    assert draw(numbers[::-1].copy(), 0, 0) == all_six[::-1]
    assert draw(numbers[2:3], 0, 0) == all_six[2:3]
    assert draw(numbers, 1, 0) != all_six and draw(numbers, 0, 1) != all_six


def test_greedy_and_nearly_greedy() -> None:
    logits = 1e4 * np.random.default_rng(2).normal(size=(5, 40)).astype(np.float32)
    logits[0, [3, 7]] = 1e6
    numbers = np.arange(5, dtype=np.uint32)
    assert sampling_method(spec(0.0, 5, 0.5)) == "greedy" and sampling_method(spec(0.1)) == "draw"
    assert sampling_method(spec(top_k=3)) == sampling_method(spec(top_p=0.9)) == "filter"
    greedy = draw_jitted(logits, sampling_settings(spec(0.0)), numbers, jnp.int32(0), "greedy")
    assert np.asarray(greedy).tolist() == logits.argmax(axis=-1).tolist()
    # The smallest temperature neither overflows nor ties what differs.
    cold = draw_jitted(logits[1:], sampling_settings(spec(1e-30)), numbers[1:], jnp.int32(0), "draw")
    assert np.asarray(cold).tolist() == logits[1:].argmax(axis=-1).tolist()


def test_ruled_out_tokens() -> None:
    logits = jnp.ones((2, 5))
    out = exclude_tokens(logits, jnp.asarray([1, 4]), jnp.asarray(True))
    assert np.flatnonzero(np.asarray(out[1]) == EXCLUDED).tolist() == [1, 4]
    assert (exclude_tokens(logits, jnp.asarray([1, 4]), jnp.asarray(False)) == logits).all()
    assert (exclude_tokens(logits, jnp.zeros(0, jnp.int32), jnp.asarray(True)) == logits).all()
