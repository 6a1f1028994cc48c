"""One adapted linear layer against plain numpy, and DoRA's norm in parts against the norm in one piece."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.parameters.lora_math import adapted, low_rank, merged_weight, row_norms
from jora_core.parameters.trees import LoraWeights

OUT, IN, R, SCALE = 10, 8, 3, 1.7


def draw(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture()
def parts() -> tuple[np.ndarray, np.ndarray, LoraWeights]:
    """x [5, in], W [out, in] and a DoRA pair."""
    pair = LoraWeights(
        a=jnp.asarray(draw(R, IN, seed=1)),
        b=jnp.asarray(draw(OUT, R, seed=2)),
        magnitude=jnp.asarray(1 + np.abs(draw(OUT, seed=3))),
    )
    return draw(5, IN, seed=4), draw(OUT, IN, seed=5), pair


def formed(weight: np.ndarray, pair: Any, scale: float = SCALE) -> np.ndarray:
    """W + s·B A, and DoRA's scaling of its rows, in float64."""
    whole = weight.astype(np.float64) + scale * np.asarray(pair.b, np.float64) @ np.asarray(
        pair.a, np.float64
    )
    if pair.magnitude is None:
        return whole
    return np.asarray(pair.magnitude)[:, None] * whole / np.linalg.norm(whole, axis=1, keepdims=True)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapted_and_merged_equal_the_formed_weight(parts: Any, dora: bool) -> None:
    x, weight, pair = parts
    pair = pair if dora else pair.replace(magnitude=None)
    expected = formed(weight, pair)
    got = adapted(jnp.asarray(x @ weight.T), low_rank(jnp.asarray(x), pair), jnp.asarray(weight), pair, SCALE)
    np.testing.assert_allclose(got, x @ expected.T, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        merged_weight(jnp.asarray(weight), [(pair, SCALE)]), expected, rtol=2e-5, atol=1e-6
    )


def test_adapters_merge_in_their_order(parts: Any) -> None:
    _, weight, dora = parts
    lora = LoraWeights(a=jnp.asarray(draw(2, IN, seed=6)), b=jnp.asarray(draw(OUT, 2, seed=7)))
    got = merged_weight(jnp.asarray(weight), [(dora, SCALE), (lora, 0.5)])
    np.testing.assert_allclose(got, formed(formed(weight, dora), lora, 0.5), rtol=2e-5, atol=1e-5)
    other = merged_weight(jnp.asarray(weight), [(lora, 0.5), (dora, SCALE)])
    np.testing.assert_allclose(other, formed(formed(weight, lora, 0.5), dora), rtol=2e-5, atol=1e-5)
    assert np.abs(np.asarray(got - other)).max() > 0.1


def test_the_norm_is_a_constant_to_the_gradient(parts: Any) -> None:
    import torch

    x, weight, pair = parts

    def loss(pair: LoraWeights) -> jax.Array:
        out = adapted(
            jnp.asarray(x @ weight.T), low_rank(jnp.asarray(x), pair), jnp.asarray(weight), pair, SCALE
        )
        return jnp.sum(jnp.sin(out))

    got = jax.grad(loss)(pair)
    a, b, m = (torch.tensor(np.asarray(v), requires_grad=True) for v in (pair.a, pair.b, pair.magnitude))
    whole = torch.tensor(weight) + SCALE * b @ a
    out = torch.tensor(x) @ (m[:, None] * whole / whole.norm(dim=1, keepdim=True).detach()).T
    torch.sin(out).sum().backward()
    for ours, theirs in ((got.a, a), (got.b, b), (got.magnitude, m)):
        assert theirs.grad is not None
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_split_over_devices_add_up_to_the_whole(parts: Any) -> None:
    """`vmap` with a named axis stands for two devices: each has half of the inputs of x, W and A."""
    x, weight, pair = parts
    halves = [np.stack(np.split(v, 2, axis=1)) for v in (x, weight, np.asarray(pair.a))]

    def one_device(x: jax.Array, weight: jax.Array, a: jax.Array) -> jax.Array:
        mine = pair.replace(a=a)
        part = adapted(
            x @ weight.T,
            low_rank(x, mine),
            weight,
            mine,
            SCALE,
            sum_over_inputs=lambda squares: jax.lax.psum(squares, "tensor"),
        )
        return jax.lax.psum(part, "tensor")

    got = jax.vmap(one_device, axis_name="tensor")(*halves)[0]
    np.testing.assert_allclose(got, x @ formed(weight, pair).T, rtol=2e-5, atol=2e-5)


def test_a_weight_stored_otherwise_is_made_dense_for_the_norm(parts: Any) -> None:
    x, weight, pair = parts
    stored = {"halves": jnp.asarray(weight / 2)}
    got = adapted(
        jnp.asarray(x @ weight.T),
        low_rank(jnp.asarray(x), pair),
        stored,
        pair,
        SCALE,
        dense=lambda w: 2 * w["halves"],
    )
    np.testing.assert_allclose(got, x @ formed(weight, pair).T, rtol=2e-5, atol=2e-5)


def test_bfloat16_keeps_small_changes_of_the_magnitude(parts: Any) -> None:
    """A ratio of 1.003 rounds to 1 in bfloat16, so it must not be rounded before it is used."""
    _, weight, pair = parts
    pair = pair.replace(b=jnp.zeros_like(pair.b), magnitude=1.003 * row_norms(jnp.asarray(weight)))
    base = jnp.asarray(draw(400, OUT, seed=8), jnp.bfloat16)
    got = adapted(base, low_rank(jnp.zeros((400, IN), jnp.bfloat16), pair), jnp.asarray(weight), pair, SCALE)
    assert got.dtype == jnp.bfloat16
    assert float(jnp.mean((got != base).astype(jnp.float32))) > 0.2


def test_a_row_of_zeros_stays_finite() -> None:
    pair = LoraWeights(a=jnp.zeros((R, IN)), b=jnp.zeros((OUT, R)), magnitude=jnp.zeros(OUT))
    out = adapted(jnp.zeros((2, OUT)), low_rank(jnp.ones((2, IN)), pair), jnp.zeros((OUT, IN)), pair, SCALE)
    np.testing.assert_array_equal(out, np.zeros((2, OUT)))
