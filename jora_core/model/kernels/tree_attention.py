"""Flash attention for packed rows and shared contexts on an NVIDIA GPU, in three Pallas kernels.

One launch computes the output, two compute the gradients. The kernels are lowered through Triton, which JAX
0.11 calls deprecated: a later JAX will need them on Mosaic GPU.

Shape letters beside the usual ones: G = N/K query heads of one key/value head, T' = T padded to whole blocks,
W = distinct attention windows of a model's layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jora_core.model.attention_slots import Slots, reach
from jora_core.model.kernels.tile_kernels import (
    Settings,
    tree_attention_d_kv,
    tree_attention_d_q,
    tree_attention_output,
)
from jora_core.model.kernels.visible_blocks import VisibleBlocks, listed, pair_kinds
from jora_core.model.rematerialization import KEPT_ATTENTION
from jora_core.parallel.collectives import as_varying, varying_axes

# Widest head for which the tiles below fit into registers and shared memory.
MOST_WIDTH = 256
# A matrix product of the tensor cores has at least 16 rows, columns and terms.
_LEAST_BLOCK = 16


class Tiling(NamedTuple):
    """Sizes of one kernel's blocks, and how the compiler spreads their work.

    Attributes:
        queries: slots of a block of queries.
        keys: slots of a block of keys.
        warps: groups of 32 threads in a program.
        stages: blocks in flight from memory to the cores.
    """

    queries: int
    keys: int
    warps: int
    stages: int


class Tilings(NamedTuple):
    """Tilings of the kernels for one head width: for programs that own queries, and those that own keys."""

    output: Tiling
    d_q: Tiling
    d_kv: Tiling


# By the greatest number of bytes of a head: 64, 128 and 256 numbers of two bytes, and 256 of four. The first
# two of a row share their lists of blocks, so their sizes are equal.
_TILINGS = {
    128: Tilings(Tiling(128, 64, 8, 3), Tiling(128, 64, 8, 3), Tiling(64, 64, 4, 2)),
    256: Tilings(Tiling(128, 64, 8, 3), Tiling(128, 64, 8, 2), Tiling(64, 64, 8, 2)),
    512: Tilings(Tiling(64, 32, 8, 2), Tiling(64, 32, 8, 2), Tiling(32, 64, 8, 2)),
    1024: Tilings(Tiling(32, 32, 8, 1), Tiling(32, 32, 8, 1), Tiling(16, 32, 8, 1)),
}


@flax.struct.dataclass
class TreePlan:
    """What the kernels need to know of a batch's rows; computed once a batch for all layers.

    Attributes:
        slots: the attention mask, padded to T'.
        by_query: for each window, the blocks of keys of each block of queries.
        by_key: for each window, the blocks of queries of each block of keys.
        limits: int32 [W], the limit of the distance between query and key.
        windows: the W windows in positions, 0 for none.
        width: head width H that the plan is for.
        tilings: tilings of the kernels.
        interpret: whether the kernels run as plain JAX operations, on any device.
    """

    slots: Slots
    by_query: VisibleBlocks
    by_key: VisibleBlocks
    limits: jax.Array
    windows: tuple[int, ...] = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)
    tilings: Tilings = flax.struct.field(pytree_node=False)
    interpret: bool = flax.struct.field(pytree_node=False, default=False)


def plan_trees(
    slots: Slots,
    width: int,
    dtype: Any,
    windows: Sequence[int] = (0,),
    *,
    tilings: Tilings | None = None,
    interpret: bool = False,
) -> TreePlan:
    """Compute the plan of a batch's rows.

    Args:
        slots: the attention mask.
        width: head width H, at most `MOST_WIDTH`.
        dtype: type of q, k and v.
        windows: the distinct attention windows of the layers in positions, 0 for none.
        tilings: tilings of the kernels, the first two of equal blocks; chosen by width and row if None.
        interpret: run the kernels as plain JAX operations, for tests on a device without Triton.
    """
    length = slots.until.shape[1]
    tilings = tilings or tilings_of(width, dtype, length)
    short = -length % math.lcm(*(size for tiling in tilings for size in (tiling.queries, tiling.keys)))
    slots = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, short))), slots)

    def kinds(tiling: Tiling) -> jax.Array:
        return jnp.stack([pair_kinds(slots, w, tiling.queries, tiling.keys) for w in windows])

    return TreePlan(
        slots=slots,
        by_query=listed(kinds(tilings.output)),
        by_key=listed(kinds(tilings.d_kv).swapaxes(-1, -2)),
        limits=jnp.stack([reach(w) for w in windows]),
        windows=tuple(windows),
        width=width,
        tilings=tilings,
        interpret=interpret,
    )


def tilings_of(width: int, dtype: Any, length: int) -> Tilings:
    """Return the kernels' tilings.

    Args:
        width: head width H.
        dtype: type of q, k and v.
        length: slots of a row; no block is much longer.
    """
    size = width * jnp.dtype(dtype).itemsize
    tilings = _TILINGS[min(most for most in _TILINGS if most >= size)]
    longest = max(_power_of_two(length), _LEAST_BLOCK)
    return Tilings(
        *(
            tiling._replace(queries=min(tiling.queries, longest), keys=min(tiling.keys, longest))
            for tiling in tilings
        )
    )


def tree_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    plan: TreePlan,
    *,
    scale: float,
    softcap: float | None = None,
    window: jax.Array | int = 0,
) -> jax.Array:
    """Compute softmax attention of N query heads over K key/value heads, in three kernels.

    Args:
        q: [B, T, N, H], N a multiple of K.
        k: [B, T, K, H].
        v: [B, T, K, H].
        plan: the plan of the batch's rows.
        scale: factor of the scores.
        softcap: bound c of the scores, which become c·tanh(scores / c); None for no bound.
        window: attention window of this layer, one of the plan's; may be traced.

    Returns:
        [B, T, N, H] in the type of `q`; zeros in padding.
    """
    return _attend(Scores(scale, softcap), q, k, v, of_window(plan, window))


class Scores(NamedTuple):
    """Static settings of a call: the factor of the scores, and their bound."""

    scale: float
    softcap: float | None


def of_window(plan: TreePlan, window: jax.Array | int) -> TreePlan:
    """Return the plan for one of its windows, with W = 1."""
    if len(plan.windows) == 1:
        return plan
    index = jnp.argmax(jnp.asarray(plan.windows, jnp.int32) == window)

    def chosen(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, index, keepdims=True)

    by_query, by_key, limits = jax.tree.map(chosen, (plan.by_query, plan.by_key, plan.limits))
    return plan.replace(by_query=by_query, by_key=by_key, limits=limits)  # type: ignore[attr-defined]


# What the backward pass needs: q, k, v, the plan, the output and the logarithms of the sums.
Residuals = tuple[jax.Array, jax.Array, jax.Array, TreePlan, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scores: Scores, q: jax.Array, k: jax.Array, v: jax.Array, plan: TreePlan) -> jax.Array:
    return tree_forward(scores, q, k, v, plan)[0]


def _forward(
    scores: Scores, q: jax.Array, k: jax.Array, v: jax.Array, plan: TreePlan
) -> tuple[jax.Array, Residuals]:
    out, log_total = tree_forward(scores, q, k, v, plan)
    # Both are named, as in blockwise attention, or a policy that keeps the output would compute it again.
    out = checkpoint_name(out, KEPT_ATTENTION)
    log_total = checkpoint_name(log_total, KEPT_ATTENTION)
    return out, (q, k, v, plan, out, log_total)


def _backward(
    scores: Scores, saved: Residuals, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    return *tree_backward(scores, saved, grad), None


_attend.defvjp(_forward, _backward)


def tree_forward(
    scores: Scores, q: jax.Array, k: jax.Array, v: jax.Array, plan: TreePlan
) -> tuple[jax.Array, jax.Array]:
    """Compute attention for a caller that has its own derivative rule.

    Args:
        scores: static settings.
        q: [B, T, N, H].
        k: [B, T, K, H].
        v: [B, T, K, H].
        plan: the plan of the batch's rows, for one window.

    Returns:
        The output [B, T, N, H] in the type of `q`, and the logarithm of each query's sum, float32 [B, N, T'],
        for `tree_backward`.
    """
    length, heads, groups = q.shape[1], q.shape[2], q.shape[2] // k.shape[2]
    q, k, v = (_filled(x, plan) for x in (q, k, v))
    filled = q.shape[1]
    tiling = plan.tilings.output
    own, rows, logs = _blocks_of_queries(tiling, plan.width, filled, groups)
    out, log_total = _launch(
        tree_attention_output,
        scores,
        plan,
        tiling,
        grid=(filled // tiling.queries, heads, q.shape[0]),
        blocks=plan.by_query,
        inputs=[(q, own), (k, rows), (v, rows)],
        outputs=[(q.shape, q.dtype, own), ((q.shape[0], heads, filled), jnp.float32, logs)],
    )
    return out[:, :length], log_total


def tree_backward(
    scores: Scores, saved: Residuals, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of `tree_forward` for q, k and v.

    Args:
        scores: static settings.
        saved: q, k, v and the plan, then both results of `tree_forward`.
        grad: gradient of the output, [B, T, N, H].
    """
    q, k, v, plan, out, log_total = saved
    length, heads, kv_heads = q.shape[1], q.shape[2], k.shape[2]
    groups = heads // kv_heads
    # The sum over keys of weight times its gradient, which softmax's derivative subtracts, is the product of
    # the output with its gradient.
    inner = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    inner = jnp.pad(inner, ((0, 0), (0, 0), (0, log_total.shape[-1] - length)))
    q, k, v, grad = (_filled(x, plan) for x in (q, k, v, grad))
    batch, filled = q.shape[:2]

    tiling = plan.tilings.d_q
    own, rows, logs = _blocks_of_queries(tiling, plan.width, filled, groups)
    (d_q,) = _launch(
        tree_attention_d_q,
        scores,
        plan,
        tiling,
        grid=(filled // tiling.queries, heads, batch),
        blocks=plan.by_query,
        inputs=[(q, own), (k, rows), (v, rows), (grad, own), (log_total, logs), (inner, logs)],
        outputs=[(q.shape, q.dtype, own)],
    )

    tiling = plan.tilings.d_kv
    own = _by_head(tiling.keys, plan.width)
    rows = pl.BlockSpec((None, filled, groups, _columns(plan.width)), lambda j, n, b: (b, 0, n, 0))
    logs = pl.BlockSpec((None, groups, filled), lambda j, n, b: (b, n, 0))
    d_k, d_v = _launch(
        tree_attention_d_kv,
        scores,
        plan,
        tiling,
        grid=(filled // tiling.keys, kv_heads, batch),
        blocks=plan.by_key,
        inputs=[(q, rows), (k, own), (v, own), (grad, rows), (log_total, logs), (inner, logs)],
        outputs=[(k.shape, k.dtype, own), (v.shape, v.dtype, own)],
    )
    return d_q[:, :length], d_k[:, :length], d_v[:, :length]


def _launch(
    kernel: Callable[..., None],
    scores: Scores,
    plan: TreePlan,
    tiling: Tiling,
    *,
    grid: tuple[int, int, int],
    blocks: VisibleBlocks,
    inputs: list[tuple[jax.Array, pl.BlockSpec]],
    outputs: list[tuple[tuple[int, ...], Any, pl.BlockSpec]],
) -> list[jax.Array]:
    """Launch one kernel on a grid of blocks x heads x rows, with the plan's arrays as its first inputs."""
    windowed = any(window > 0 for window in plan.windows)
    settings = Settings(scores.scale, scores.softcap, windowed, plan.width, tiling.queries, tiling.keys)
    others, filled = blocks.order.shape[-1], plan.slots.until.shape[1]
    of_row = pl.BlockSpec((None, filled), lambda i, n, b: (b, 0))
    mask = [
        (blocks.order, pl.BlockSpec((None, None, None, others), lambda i, n, b: (0, b, i, 0))),
        (blocks.counts, pl.BlockSpec((None, None, None, 2), lambda i, n, b: (0, b, i, 0))),
        (plan.limits, pl.BlockSpec((1,), lambda i, n, b: (0,))),
        (plan.slots.until, of_row),
        (plan.slots.positions, of_row),
    ]
    arrays, specs = zip(*mask, *inputs, strict=True)
    # Under `jax.shard_map` a result must say over which axes of the mesh it varies.
    varies = jax.sharding.ManualAxisType(varying=varying_axes(*arrays))
    arrays = [as_varying(array, *arrays) for array in arrays]
    return pl.pallas_call(
        partial(kernel, settings),
        grid=grid,
        in_specs=list(specs),
        out_specs=[spec for _, _, spec in outputs],
        out_shape=[
            jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varies) for shape, dtype, _ in outputs
        ],
        compiler_params=triton.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
        interpret=plan.interpret,
        name=kernel.__name__,
    )(*arrays)


def _blocks_of_queries(
    tiling: Tiling, width: int, filled: int, groups: int
) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Return the blocks of programs that own queries of one head.

    Args:
        tiling: sizes of the kernel's blocks.
        width: head width H.
        filled: T'.
        groups: G.

    Returns:
        Blocks of an array [B, T', N, H], whole rows of one [B, T', K, H], blocks of one [B, N, T'].
    """
    rows = pl.BlockSpec((None, filled, None, _columns(width)), lambda i, n, b: (b, 0, n // groups, 0))
    logs = pl.BlockSpec((None, None, tiling.queries), lambda i, n, b: (b, n, i))
    return _by_head(tiling.queries, width), rows, logs


def _by_head(size: int, width: int) -> pl.BlockSpec:
    """Return the blocks of `size` slots of an array [B, T', heads, H]; each program owns one of one head."""
    return pl.BlockSpec((None, size, None, _columns(width)), lambda i, n, b: (b, i, n, 0))


def _columns(width: int) -> int:
    """Return the width of a block in the kernel, which must be a power of two."""
    return max(_power_of_two(width), _LEAST_BLOCK)


def _filled(x: jax.Array, plan: TreePlan) -> jax.Array:
    """Pad an array [B, T, heads, H] with zeros to T' slots."""
    short = plan.slots.until.shape[1] - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))) if short else x


def _power_of_two(size: int) -> int:
    """Return the least power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()
