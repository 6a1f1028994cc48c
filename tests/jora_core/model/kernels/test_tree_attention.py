"""The kernel for trees in interpret mode, against dense attention under masks that the trees tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from jora_core.model.attention_slots import Slots
from jora_core.model.cudnn_attention import cuda_capability
from jora_core.model.dense_attention import attention, example_mask
from jora_core.model.kernels.tree_attention import Tiling, Tilings, plan_trees, tilings_of, tree_attention
from jora_core.model.kernels.visible_blocks import listed, pair_kinds
from jora_core.model.rematerialization import KEPT_ATTENTION
from tests.jora_core.model.kernels.random_trees import random_rows

# Blocks so small that a short row has many: some without, some with some, some with all pairs allowed.
SMALL = Tilings(Tiling(32, 16, 4, 2), Tiling(32, 16, 4, 2), Tiling(16, 32, 4, 2))
ROWS, LENGTH = 2, 150  # not a multiple of a block
# Largest difference over the largest value.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}


def test_random_trees_follow_the_rule_of_slots() -> None:
    slots, sees = random_rows(np.random.default_rng(0), 20, 60)
    np.testing.assert_array_equal(example_mask(jax.tree.map(jnp.asarray, slots)), sees)
    branches = (np.diff(slots.positions, axis=1) < 0) & (slots.positions[:, 1:] > 0)
    assert branches.any() and (slots.until == 0).any() and sees.sum() > 20 * 60


@cache
def passes(
    heads: int, kv_heads: int, width: int, windows: tuple[int, ...], softcap: float | None, small: bool,
    interpret: bool,
) -> Callable[..., Any]:  # fmt: skip
    """Results of the kernel and of dense attention: output, and the gradients of q, k and v."""
    scale = 1.5 * width**-0.5

    def dense(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        out = attention(q, k, v, mask, scale=scale, softcap=softcap)
        return jnp.where(mask.any(axis=-1)[:, :, None, None], out, 0)

    @jax.jit
    def both(arrays: tuple[jax.Array, ...], slots: Slots, sees: jax.Array, window: jax.Array) -> Any:
        *inputs, grad = arrays
        plan = plan_trees(
            slots, width, inputs[0].dtype, windows, tilings=SMALL if small else None, interpret=interpret
        )
        near = slots.positions[:, :, None] - slots.positions[:, None, :] < window
        mask = sees & (near | (window == 0))
        kernel = partial(tree_attention, plan=plan, scale=scale, softcap=softcap, window=window)
        found, back = jax.vjp(kernel, *inputs)
        # In float32, so that a bfloat16 result is held against the true one.
        expected, exact = jax.vjp(partial(dense, mask=mask), *(x.astype(jnp.float32) for x in inputs))
        return (found, *back(grad)), (expected, *exact(grad.astype(jnp.float32)))

    return both


def check(
    seed: int, heads: int, kv_heads: int, width: int, *, windows: tuple[int, ...] = (0,),
    softcap: float | None = None, dtype: str = "float32", small: bool = True, length: int = LENGTH,
    interpret: bool = True,
) -> None:  # fmt: skip
    """Compare both passes on rows of random trees."""
    rng = np.random.default_rng(seed)
    slots, sees = random_rows(rng, ROWS, length)
    arrays = tuple(
        jnp.asarray(rng.standard_normal((ROWS, length, n, width)), dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    both = passes(heads, kv_heads, width, windows, softcap, small, interpret)
    for window in windows:
        found, expected = both(arrays, jax.tree.map(jnp.asarray, slots), sees, jnp.int32(window))
        for name, got, exact in zip(("output", "q", "k", "v"), found, expected, strict=True):
            assert got.dtype == jnp.dtype(dtype)
            gap = np.abs(np.asarray(got, np.float32) - np.asarray(exact)).max()
            assert gap <= TOLERANCES[dtype] * np.abs(exact).max(), (seed, window, name)


FEATURES = [
    {"heads": 2, "kv_heads": 2, "width": 64},
    {"heads": 4, "kv_heads": 2, "width": 64, "windows": (0, 9), "softcap": 3.0},
    {"heads": 3, "kv_heads": 1, "width": 24, "windows": (20,)},
    {"heads": 2, "kv_heads": 1, "width": 8, "softcap": 3.0},
]


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        *((features, "float32") for features in FEATURES),
        *((features, "bfloat16") for features in FEATURES[1:3]),
    ],
)
def test_equals_dense_attention(features: dict[str, Any], dtype: str) -> None:
    for seed in range(2):
        check(seed, **features, dtype=dtype)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("features", FEATURES)
def test_two_hundred_trees(features: dict[str, Any], dtype: str) -> None:
    for seed in range(200 // ROWS):
        check(100 + seed, **features, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "length"), [(64, 300), (96, 300), (128, 300), (256, 200), (128, 40)])
def test_the_tilings_of_a_gpu(width: int, length: int) -> None:
    for dtype in TOLERANCES:
        check(1, 2, 1, width, windows=(0, 30), softcap=5.0, dtype=dtype, small=False, length=length)


@pytest.mark.gpu
@pytest.mark.skipif(cuda_capability() is None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 64), (6, 2, 96), (8, 2, 128), (4, 1, 256)])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_on_a_gpu(heads: int, kv_heads: int, width: int, dtype: str) -> None:
    with jax.default_matmul_precision("highest"):
        for windows, softcap in (((0,), None), ((0, 200), 30.0)):
            check(
                2, heads, kv_heads, width, windows=windows, softcap=softcap, dtype=dtype,
                small=False, length=1000, interpret=False,
            )  # fmt: skip


def test_blocks_are_neither_missed_nor_called_whole_wrongly() -> None:
    slots, sees = random_rows(np.random.default_rng(3), 40, 64)
    slots = jax.tree.map(jnp.asarray, slots)
    kinds_seen = set()
    for window in (0, 5, 40):
        allowed = np.asarray(example_mask(slots, window)).reshape(40, 4, 16, 8, 8)
        kinds = np.asarray(pair_kinds(slots, window, 16, 8))
        some, every = allowed.any(axis=(2, 4)), allowed.all(axis=(2, 4))
        assert (kinds[some] < 2).all() and (kinds[kinds == 1] == 1).all()
        np.testing.assert_array_equal(kinds == 1, every)
        # The bounds may call too many blocks visible, but few.
        assert (kinds < 2).sum() <= 1.3 * some.sum()
        kinds_seen |= set(kinds.ravel())
        lists = listed(jnp.asarray(kinds))
        for row, block in np.ndindex(kinds.shape[:2]):
            part, visible = np.asarray(lists.counts[row, block])
            order = np.asarray(lists.order[row, block])
            assert (kinds[row, block, order[:part]] == 0).all()
            assert (kinds[row, block, order[part:visible]] == 1).all()
            assert (kinds[row, block, order[visible:]] == 2).all()
    assert kinds_seen == {0, 1, 2}
    assert sees.any()


def test_padding_gets_zeros_and_gives_no_gradient() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 40, 2, 16))
    slots = Slots(jnp.where(jnp.arange(40) < 10, 10, 0)[None], jnp.arange(40)[None] % 10)
    plan = plan_trees(slots, 16, jnp.float32, tilings=SMALL, interpret=True)
    out, back = jax.vjp(lambda *x: tree_attention(*x, plan, scale=0.5), x, x, x)
    np.testing.assert_array_equal(out[:, 10:], 0)
    for part in back(jnp.ones_like(out)):
        np.testing.assert_array_equal(part[:, 10:], 0)
        assert np.isfinite(part).all()
    assert np.abs(back(x)[2][:, :10]).max() > 0


def test_recomputation_keeps_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Under a policy that keeps attention, its two results are all that is kept of it."""
    x = jnp.ones((1, 32, 2, 16))
    slots = Slots(jnp.full((1, 32), 32), jnp.arange(32)[None])
    plan = plan_trees(slots, 16, jnp.float32, tilings=SMALL, interpret=True)
    policy = jax.checkpoint_policies.save_only_these_names(KEPT_ATTENTION)
    step = jax.checkpoint(lambda *x: (tree_attention(*x, plan, scale=0.5) ** 2).sum(), policy=policy)
    print_saved_residuals(step, x, x, x)
    kept = [line for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    named = [line for line in kept if f"'{KEPT_ATTENTION}'" in line]
    assert len(named) == 2
    assert all("constant" in line for line in kept if line not in named), kept


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_program_for_cuda_launches_three_kernels(softcap: float | None) -> None:
    """Lowered for a GPU that need not be here: one kernel forward, two backward, and no loop of XLA's."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, slots: Slots) -> jax.Array:
        plan = plan_trees(slots, 64, jnp.bfloat16, (0, 128))
        return tree_attention(q, k, v, plan, scale=0.1, softcap=softcap, window=128).astype(jnp.float32).sum()

    q, k = (jax.ShapeDtypeStruct((2, 320, heads, 64), jnp.bfloat16) for heads in (4, 2))
    ids = jax.ShapeDtypeStruct((2, 320), jnp.int32)
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, Slots(ids, ids))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton(") == 3
    assert [text.count(f'name = "tree_attention_{name}"') for name in ("output", "d_q", "d_kv")] == [1, 1, 1]
    assert "stablehlo.while" not in text


def test_tilings_fit_head_and_row() -> None:
    wide, narrow, exact = (
        tilings_of(*head, 5000) for head in ((128, jnp.bfloat16), (64, jnp.bfloat16), (64, jnp.float32))
    )
    assert wide == exact != narrow
    assert tilings_of(96, jnp.bfloat16, 5000) == wide
    for tiling in tilings_of(128, jnp.bfloat16, 20):
        assert (tiling.queries, tiling.keys) == (32, 32)
    for width in (64, 128, 256):
        output, d_q, _ = tilings_of(width, jnp.float32, 5000)
        assert output[:2] == d_q[:2], "both walk along one list"
