"""Blockwise attention against plain softmax attention under a mask made slot by slot."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.model.attention_slots import Slots, take_slots
from jora_core.model.blockwise_attention import blockwise_attention, fitting_block, visited_slots
from jora_core.model.dense_attention import attention, example_mask
from tests.jora_core.trees import until_of


def slow_mask(slots: Slots, window: int) -> np.ndarray:
    """The rule, slot by slot."""
    until, positions = (np.asarray(x) for x in (slots.until, slots.positions))
    batch, length = until.shape
    allowed = np.zeros((batch, length, length), bool)
    for b, q, k in np.ndindex(batch, length, length):
        near = window == 0 or positions[b, q] - positions[b, k] < window
        allowed[b, q, k] = k <= q < until[b, k] and near
    return allowed


def make_slots(length: int) -> Slots:
    """Rows of one example, of two examples and padding, of one prefix with two suffixes and another example,
    and of a tree: the last branch leaves the second after the second has left the first.
    """
    segments = np.ones((4, length), np.int32)
    suffixes = np.zeros((4, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (4, 1))
    cut, end = length // 3, length - length // 5
    segments[1, cut:], segments[1, end:] = 2, 0
    positions[1, cut:] -= cut
    first, second, other = length // 4, length // 2, length - length // 6
    suffixes[2, first:second], suffixes[2, second:other] = 1, 2
    positions[2, second:other] -= second - first
    segments[2, other:], positions[2, other:] = 2, np.arange(length - other)
    until = until_of(segments, suffixes)
    one, two, depth = length // 3, 2 * length // 3, length // 6
    until[3, depth:one], positions[3, one:] = one, np.arange(length - one) + depth
    until[3, one + depth : two], positions[3, two:] = two, np.arange(length - two) + 2 * depth
    return Slots(jnp.asarray(until), jnp.asarray(positions))


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, scale: float, softcap: float | None) -> Any:
    repeats = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * scale
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None], scores, -1e30)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), v)


def test_mask_follows_the_rule() -> None:
    rng = np.random.default_rng(0)
    slots = Slots(*(jnp.asarray(rng.integers(0, n, (3, 9))) for n in (11, 9)))
    for window in (0, 2, 5):
        np.testing.assert_array_equal(example_mask(slots, window), slow_mask(slots, window))


@pytest.mark.parametrize(
    ("groups", "window", "softcap", "block"),
    [
        (1, 0, None, 16),
        (2, 0, None, None),
        (6, 7, None, 16),
        (2, 30, 3.0, 8),
        (3, 0, 3.0, 70),
        (2, 9, None, 32),
    ],
)
def test_values_and_gradients(groups: int, window: int, softcap: float | None, block: int | None) -> None:
    """Equal to plain attention with grouped heads, packing, suffixes, windows, soft-caps, any block size."""
    length, keys = 70, iter(jax.random.split(jax.random.key(0), 4))
    q, k, v = (2 * jax.random.normal(next(keys), (4, length, n, 8)) for n in (6, groups, groups))
    slots = make_slots(length)
    mask = jnp.asarray(slow_mask(slots, window))
    real = (slots.until > 0)[:, :, None, None]
    upstream = jnp.where(real, jax.random.normal(next(keys), q.shape), 0.0)
    how = {"scale": 0.3, "softcap": softcap}

    @jax.jit
    def both(q: jax.Array, k: jax.Array, v: jax.Array, limit: jax.Array) -> Any:
        def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            out = blockwise_attention(q, k, v, slots, window=limit, block=block, **how)
            return jnp.where(real, out, 0.0)

        def theirs(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.where(real, plain(q, k, v, mask, **how), 0.0)

        (a, back_a), (b, back_b) = jax.vjp(ours, q, k, v), jax.vjp(theirs, q, k, v)
        return (a, *back_a(upstream)), (b, *back_b(upstream))

    for got, expected in zip(*both(q, k, v, jnp.int32(window)), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-5)
    dense = jnp.where(real, attention(q, k, v, mask, **how), 0.0)
    np.testing.assert_allclose(dense, both(q, k, v, jnp.int32(window))[1][0], atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "window", "softcap", "block"),
    [(1, 0, None, 16), (2, 30, 3.0, 8), (3, 9, None, 70), (2, 0, None, None)],
)
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_some_queries_are_those_of_all(
    groups: int, window: int, softcap: float | None, block: int | None, blocks: int
) -> None:
    """Queries in any order, some of them twice, over one or several rows."""
    length, keys = 70, iter(jax.random.split(jax.random.key(0), 4))
    q, k, v = (2 * jax.random.normal(next(keys), (4, length, n, 8)) for n in (6, groups, groups))
    slots = make_slots(length)
    real = np.asarray(slots.until).reshape(blocks, -1) > 0
    rng = np.random.default_rng(0)
    at = np.stack([rng.choice(np.flatnonzero(row), 37) for row in real]).astype(np.int32)
    # One block's queries as `find_edges` gives them.
    at[0] = np.sort(at[0])
    how: dict[str, Any] = {"scale": 0.3, "softcap": softcap, "block": block}
    found = jax.jit(partial(blockwise_attention, **how))(q, k, v, slots, window=window, at=at)
    whole = blockwise_attention(q, k, v, slots, window=window, **how)
    np.testing.assert_allclose(found, take_slots(whole, jnp.asarray(at)), atol=1e-5)


def test_no_array_holds_all_scores() -> None:
    """Forward and backward of 2,048 slots in blocks of 256: nothing as large as one head's scores."""
    shape = (1, 2048, 2, 8)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    ids = jax.ShapeDtypeStruct(shape[:2], jnp.int32)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, slots: Slots) -> jax.Array:
        return blockwise_attention(q, k, v, slots, scale=1.0, block=256).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, Slots(ids, ids)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2048 * 2048 * 4


def test_padding_gets_finite_values_and_gives_no_gradient() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
    slots = Slots(jnp.asarray([[3, 3, 3, 0, 0, 0]]), jnp.arange(6)[None])

    def out(x: jax.Array, block: int) -> jax.Array:
        return blockwise_attention(x, x, x, slots, scale=0.5, block=block)

    for block in (2, 6):
        assert np.isfinite(out(x, block)).all()
        grads = np.asarray(jax.grad(lambda x, b=block: (out(x, b)[:, :3] ** 2).sum())(x))
        assert np.isfinite(grads).all() and np.abs(grads[:, :3]).max() > 0
        np.testing.assert_array_equal(grads[:, 3:], 0)


@pytest.mark.parametrize("block", [2, 4, 8, 64])
def test_visited_slots_are_those_of_the_blocks_with_a_pair(block: int) -> None:
    until = np.asarray([make_slots(30).until[0], make_slots(30).until[1]])
    block = min(block, 30)
    count = 0
    for row in until:
        # Only the largest bound of a block counts. So a block without a pair may be visited.
        for i in range(0, 30, block):
            for j in range(0, i + 1, block):
                count += block * block * any(row[s] > i for s in range(j, min(j + block, 30)))
    assert visited_slots(until, block) == count


def test_long_rows_get_large_blocks_and_short_branches_small_ones() -> None:
    rows = np.full((2, 1024), 1024, np.int32)
    # A prefix of 100 slots, then branches of 20.
    branches = np.asarray([[1024] * 100 + [100 + 20 * (slot // 20 + 1) for slot in range(924)]], np.int32)
    assert fitting_block([rows]) == 256
    assert fitting_block([branches]) == 64
