"""The attention kernels for a CPU against dense attention under masks that random trees tell."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.model.attention_slots import Slots, take_slots
from jora_core.model.blockwise_attention import blockwise_attention
from jora_core.model.dense_attention import attention
from jora_core.model.kernels import cpu_kernels
from jora_core.model.kernels.cpu_attention import cpu_attention
from tests.jora_core.model.kernels.random_trees import random_rows

ROWS, LENGTH = 3, 150
TOLERANCE = 1e-5  # of the largest value, and of 1 at least
# Query heads, key/value heads, width, window, and slots of a block.
CASES = [
    (2, 2, 64, 0, 16),
    (4, 2, 32, 9, 64),
    (6, 1, 24, 40, 32),
    (3, 3, 8, 0, 128),
    (2, 1, 128, 0, 256),
    (4, 4, 16, 1, 7),
]


def draw(seed: int, heads: int, kv_heads: int, width: int) -> tuple[Any, Slots, np.ndarray]:
    rng = np.random.default_rng(seed)
    slots, sees = random_rows(rng, ROWS, LENGTH)
    shapes = [(ROWS, LENGTH, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    arrays = tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    return arrays, jax.tree.map(jnp.asarray, slots), sees


def near(slots: Slots, sees: np.ndarray, window: int) -> np.ndarray:
    positions = np.asarray(slots.positions)
    return sees & ((window == 0) | (positions[:, :, None] - positions[:, None, :] < window))


def assert_near(found: Any, expected: Any, context: object, tolerance: float = TOLERANCE) -> None:
    gap = np.abs(np.asarray(found) - np.asarray(expected)).max()
    assert gap <= tolerance * max(1, np.abs(np.asarray(expected)).max()), context


def check(seed: int, heads: int, kv_heads: int, width: int, window: int, block: int) -> None:
    (q, k, v, grad), slots, sees = draw(seed, heads, kv_heads, width)
    mask = jnp.asarray(near(slots, sees, window))
    real = (slots.until > 0)[:, :, None, None]
    grad = jnp.where(real, grad, 0)

    @jax.jit
    def both(*arrays: jax.Array) -> Any:
        def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            found = cpu_attention(q, k, v, slots, scale=0.3, window=jnp.int32(window), block=block)
            return jnp.where(real, found, 0)

        def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.where(real, attention(q, k, v, mask, scale=0.3), 0)

        (a, back_a), (b, back_b) = jax.vjp(ours, *arrays), jax.vjp(dense, *arrays)
        return (a, *back_a(grad)), (b, *back_b(grad))

    for name, found, expected in zip(("output", "q", "k", "v"), *both(q, k, v), strict=True):
        assert np.isfinite(found).all()
        assert_near(found, expected, (seed, name))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_on_random_trees(case: tuple[int, ...]) -> None:
    for seed in range(3):
        check(seed, *case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_two_hundred_trees(case: tuple[int, ...]) -> None:
    for seed in range(200 // ROWS):
        check(100 + seed, *case)


@pytest.mark.parametrize(("heads", "kv_heads", "width", "window", "block"), CASES)
@pytest.mark.parametrize("blocks", [1, ROWS])
def test_some_queries_are_those_of_all(
    heads: int, kv_heads: int, width: int, window: int, block: int, blocks: int
) -> None:
    """Queries in any order, some of them twice, over one or several rows."""
    (q, k, v, _), slots, _ = draw(5, heads, kv_heads, width)
    rng = np.random.default_rng(0)
    real = np.asarray(slots.until).reshape(blocks, -1) > 0
    at = np.stack([rng.choice(np.flatnonzero(row), 40) for row in real]).astype(np.int32)
    compute = partial(cpu_attention, scale=0.3, window=window, block=block)
    found, whole = jax.jit(compute)(q, k, v, slots, at=at), jax.jit(compute)(q, k, v, slots)
    assert_near(found, take_slots(whole, jnp.asarray(at)), "at")


def test_large_scores_and_many_slots() -> None:
    """Softmax over thousands of keys of which one stands out, as XLA's loops compute it."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(30 * rng.standard_normal((1, 3000, 2, 16)), jnp.float32) for _ in range(3))
    positions = np.arange(3000, dtype=np.int32)[None]
    slots = Slots(jnp.full((1, 3000), 3000, jnp.int32), jnp.asarray(positions))
    found, expected = (
        jax.jit(partial(compute, scale=1.0))(q, k, v, slots)
        for compute in (cpu_attention, blockwise_attention)
    )
    # Scores reach ten thousand, where float32 has steps of a thousandth. They differ by such steps with the
    # order of their sums, which BLAS chooses by the processor, and a weight differs by as large a share.
    largest = float(jnp.abs(jnp.einsum("bqhd,bkhd->bhqk", q, k)).max())
    assert_near(found, expected, "large", tolerance=largest * float(np.finfo(np.float32).eps))


def test_many_programs_at_once_give_the_same_bits() -> None:
    """Units of a call are shared by threads, and calls of several programs share these threads."""
    (q, k, v, grad), slots, _ = draw(1, 4, 2, 32)

    @jax.jit
    def gradients(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        return jax.vjp(lambda *x: cpu_attention(*x, slots, scale=0.3, block=16), q, k, v)[1](grad)

    def run(_: int) -> list[np.ndarray]:
        return [np.asarray(x) for x in gradients(q, k, v)]

    first = run(0)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(run, range(200)):
            for one, other in zip(first, found, strict=True):
                np.testing.assert_array_equal(one, other)


def test_kernels_that_cannot_be_compiled_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> int:
        raise ValueError("no compiler\nand more")

    monkeypatch.setattr(cpu_kernels, "_callback", fail)
    with pytest.warns(UserWarning, match=r"attention is slower .* \(no compiler\)$"):
        assert not cpu_kernels.usable.__wrapped__()
