"""Attention with its written-out gradient against plain softmax attention, row by row and all at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.attention import attention, example_mask, mask_to_bias


def slow_mask(segments: np.ndarray, suffixes: np.ndarray) -> np.ndarray:
    """The rule, slot by slot."""
    batch, slots = segments.shape
    allowed = np.zeros((batch, slots, slots), bool)
    for b, q, k in np.ndindex(batch, slots, slots):
        same = segments[b, q] == segments[b, k] > 0
        allowed[b, q, k] = k <= q and same and suffixes[b, k] in (0, suffixes[b, q])
    return allowed


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    repeats = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where(mask[:, None], scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), v)


def test_mask_follows_the_rule() -> None:
    rng = np.random.default_rng(0)
    segments = rng.integers(0, 3, (3, 9))
    suffixes = rng.integers(0, 3, (3, 9))
    got = example_mask(jnp.asarray(segments), jnp.asarray(suffixes))
    np.testing.assert_array_equal(got, slow_mask(segments, suffixes))


@pytest.mark.parametrize("slots", [9, 70], ids=["at-once", "row-by-row"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_values_and_gradients(slots: int, groups: int) -> None:
    keys = iter(jax.random.split(jax.random.key(0), 4))
    shapes = ((3, slots, 6, 8), (3, slots, groups, 8), (3, slots, groups, 8))
    q, k, v = (jax.random.normal(next(keys), shape) for shape in shapes)
    segments = np.ones((3, slots), np.int32)
    segments[1, 5:] = 2
    suffixes = np.zeros((3, slots), np.int32)
    suffixes[2, 3:6], suffixes[2, 6:] = 1, 2
    mask = example_mask(jnp.asarray(segments), jnp.asarray(suffixes))
    bias = mask_to_bias(mask)
    upstream = jax.random.normal(next(keys), q.shape)

    @jax.jit
    def both(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        ours = jax.vjp(lambda a, b, c: attention(a, b, c, bias), q, k, v)
        theirs = jax.vjp(lambda a, b, c: plain(a, b, c, mask), q, k, v)
        return (ours[0], *ours[1](upstream)), (theirs[0], *theirs[1](upstream))

    for got, expected in zip(*both(q, k, v), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_padding_gets_finite_values_and_gives_no_gradient() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
    segments = jnp.asarray([[1, 1, 1, 0, 0, 0]])
    bias = mask_to_bias(example_mask(segments, 0 * segments))

    def loss(x: jax.Array) -> jax.Array:
        return (attention(x, x, x, bias)[:, :3] ** 2).sum()

    assert np.isfinite(attention(x, x, x, bias)).all()
    grads = np.asarray(jax.grad(loss)(x))
    assert np.isfinite(grads).all() and np.abs(grads[:, :3]).max() > 0
    np.testing.assert_array_equal(grads[:, 3:], 0)
