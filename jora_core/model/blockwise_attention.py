"""Attention in blocks: exact softmax attention that never forms a T x T array, forward or backward.

This is FlashAttention's algorithm (arXiv:2205.14135, 2307.08691), written with XLA loops. For each block of
queries, a loop over the blocks of keys keeps a running maximum and sum. The backward pass computes the
probabilities again from the saved log-sum-exp. Blocks without an allowed pair (the future, other examples,
other branches, outside of the window) are skipped, so a packed row costs as much as its examples alone.

Shape letters beside the usual ones: G = N/K query heads of one key/value head, T' = T padded to whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jora_core.model.attention_slots import MASKED, Slots, allowed, reach, take_slots
from jora_core.model.rematerialization import KEPT_ATTENTION
from jora_core.parallel.mesh import traced_platform

# Slots of a block: small enough that its scores stay in a CPU's cache, or large enough that its products keep
# an accelerator busy.
BLOCK_SLOTS = {"cpu": 256}
_OTHER_BLOCK_SLOTS = 512
# Of blocks for a CPU, and by how much the visited pairs of slots may exceed those of the smallest blocks.
# Large blocks use several cores better; with small ones more of what no query sees is left out.
_CPU_BLOCKS = (256, 128, 64)
_MOST_EXCESS = 1.3


def blockwise_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: Slots,
    *,
    scale: float,
    softcap: float | None = None,
    window: jax.Array | int = 0,
    block: int | None = None,
    at: jax.Array | None = None,
) -> jax.Array:
    """Compute softmax attention of N query heads over K key/value heads, in blocks.

    Key/value heads are not repeated. Query head n uses key/value head n // (N / K), as in Llama's weights.

    Args:
        q: [B, T, N, H], N a multiple of K.
        k: [B, T, K, H].
        v: [B, T, K, H].
        slots: the attention mask.
        scale: factor of the scores.
        softcap: bound c of the scores, which become c·tanh(scores / c), as in Gemma 2; None for no bound.
        window: attention window in positions, a scalar that may differ by layer; 0 for none.
        block: slots of a block; chosen by platform if None.
        at: int32 [G, M], the only queries, as slots numbered within a block of B/G rows, for inference. The
            closer together the slots of adjacent queries are, the less is computed. None for all.

    Returns:
        [B, T, N, H] in the type of `q`, or [G, M, N, H] with `at`. The values of padding are finite and
        without meaning.
    """
    if at is not None:
        q = take_slots(q, at)
        k, v = (x.reshape(len(at), -1, *x.shape[2:]) for x in (k, v))
        slots = slots.joined(len(at))
    length, block = q.shape[1], _block(k.shape[1], block)
    grouped = _grouped(q, k, v, scale, block)
    slots, limit = _filled(slots, block), reach(window)
    kernel = _Kernel(softcap, block)
    if at is not None:
        # Filled with the last one: a slot far from the others would make its block visit more keys.
        at = jnp.pad(at, ((0, 0), (0, -length % block)), mode="edge")
        return _flat(_all_queries(kernel, *grouped, _Mask(slots, limit, at))[0], length)
    # On a CPU one row at a time: scores of a row fit into the cache, those of a batch do not. A block is
    # skipped only if no row of the call needs it, so a single row skips the most.
    if traced_platform() == "cpu" and q.shape[0] > 1:

        def one_row(_: None, row: tuple[Any, ...]) -> tuple[None, jax.Array]:
            q, k, v, slots = jax.tree.map(lambda x: jnp.expand_dims(x, 0), row)
            return None, jnp.squeeze(_attend(kernel, q, k, v, _Mask(slots, limit)), 0)

        # Two rows in one iteration are independent, so XLA runs their small operations in parallel: a tenth
        # less time for rows of 1,024 slots.
        return _flat(jax.lax.scan(one_row, None, (*grouped, slots), unroll=2)[1], length)
    return _flat(_attend(kernel, *grouped, _Mask(slots, limit)), length)


def fitting_block(batches: Iterable[np.ndarray]) -> int | None:
    """Return the block size on a CPU for rows like the given ones, None on other platforms.

    It is computed from the rows alone, so a run that resumes has the same blocks.

    Args:
        batches: `until` [B, T] of some batches, on the host.
    """
    if traced_platform() != "cpu":
        return None
    visited = dict.fromkeys(_CPU_BLOCKS, 0)
    for until in batches:
        for block in _CPU_BLOCKS:
            visited[block] += visited_slots(until, block)
    most = _MOST_EXCESS * visited[_CPU_BLOCKS[-1]]
    return next(block for block in _CPU_BLOCKS if visited[block] <= most)


def visited_slots(until: np.ndarray, block: int) -> int:
    """Count the pairs of slots in the blocks that `blockwise_attention` visits on a CPU, without a window.

    Args:
        until: int32 [B, T], see `Slots`.
        block: slots of a block.
    """
    block = min(block, until.shape[1])
    filled = np.pad(until, [(0, 0), (0, -until.shape[1] % block)])
    last = filled.reshape(len(filled), -1, block).max(axis=2)
    starts = block * np.arange(last.shape[1])
    return block * block * int(np.tril(starts[:, None] < last[:, None, :]).sum())


class _Kernel(NamedTuple):
    """Static settings of a call: the soft-cap of the scores, and the slots of a block."""

    softcap: float | None
    block: int


class _Mask(NamedTuple):
    """The attention mask.

    Attributes:
        slots: bounds and positions [B, T'] of all slots.
        limit: limit of the distance between query and key.
        at: int32 [B, Q'], slots of the queries; None where all slots are queries.
    """

    slots: Slots
    limit: jax.Array
    at: jax.Array | None = None

    def queries(self, start: jax.Array | int = 0, size: int | None = None) -> tuple[jax.Array, jax.Array]:
        """Return the slots int32 [1, size] or [B, size], and the positions int32 [B, size], of queries."""
        if self.at is None:
            size = size or self.slots.until.shape[1]
            return (start + jnp.arange(size))[None], self.slots.part(start, size).positions
        at = self.at if size is None else jax.lax.dynamic_slice_in_dim(self.at, start, size, 1)
        return at, jnp.take_along_axis(self.slots.positions, at, axis=1, mode="clip")


# What the backward pass needs: q, k, v, the mask, the output and the log-sum-exp of the scores.
_Saved = tuple[jax.Array, jax.Array, jax.Array, _Mask, jax.Array, jax.Array]


def _block(length: int, block: int | None = None) -> int:
    return min(block or BLOCK_SLOTS.get(traced_platform(), _OTHER_BLOCK_SLOTS), length)


def _filled(tree: Any, block: int) -> Any:
    """Pad arrays [B, T, ...] with zeros to whole blocks; a zero in `until` is padding."""

    def fill(x: jax.Array) -> jax.Array:
        short = -x.shape[1] % block
        return jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2))) if short else x

    return jax.tree.map(fill, tree)


def _by_head(x: jax.Array, groups: int, block: int) -> jax.Array:
    """Turn [B, T, N, H] into [B, K, G, T', H]."""
    x = _filled(x, block)
    return x.reshape(*x.shape[:2], groups, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def _flat(x: jax.Array, length: int) -> jax.Array:
    """Turn [B, K, G, T', H] into [B, T, N, H]."""
    x = x.transpose(0, 3, 1, 2, 4)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :length]


def _grouped(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: float, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return q [B, K, G, T', H], scaled, and k, v [B, K, T', H] from [B, T, heads, H]."""
    # With the batch axes first, XLA's matrix product on a CPU takes each head without a hidden transposition.
    q = _by_head((q * scale).astype(q.dtype), k.shape[2], block)
    k, v = (_filled(x, block).transpose(0, 2, 1, 3) for x in (k, v))
    return q, k, v


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(kernel: _Kernel, q: jax.Array, k: jax.Array, v: jax.Array, mask: _Mask) -> jax.Array:
    """Compute attention of scaled q [B, K, G, T', H] over k, v [B, K, T', H]. The result has q's shape."""
    return _forward(kernel, q, k, v, mask)[0]


def _forward(
    kernel: _Kernel, q: jax.Array, k: jax.Array, v: jax.Array, mask: _Mask
) -> tuple[jax.Array, _Saved]:
    out, log_total = _all_queries(kernel, q, k, v, mask)
    # Both are named: a rematerialization policy that keeps only the output would run the whole forward pass
    # again for the log-sum-exp.
    out = checkpoint_name(out, KEPT_ATTENTION)
    log_total = checkpoint_name(log_total, KEPT_ATTENTION)
    return out, (q, k, v, mask, out, log_total)


def _all_queries(
    kernel: _Kernel, q: jax.Array, k: jax.Array, v: jax.Array, mask: _Mask
) -> tuple[jax.Array, jax.Array]:
    """Return the output in q's shape, and the log-sum-exp of each query's scores, float32 [B, K, G, T']."""
    block = kernel.block
    needed = _needed(mask, block)
    count = needed.shape[0]
    # The loop over keys takes the needed blocks from a list. Stepping over the others would take most of the
    # time in a long row of many groups.
    visited, visits = _visited(needed)

    def queries(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_i = jax.lax.dynamic_slice_in_dim(q, i * block, block, 3)

        def visit(j: jax.Array, state: tuple) -> tuple:
            top, total, out = state
            k_j, v_j = (jax.lax.dynamic_slice_in_dim(x, j * block, block, 2) for x in (k, v))
            scores, _ = _scores(kernel, q_i, k_j, mask, i, j)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            fade = jnp.exp(top - new_top)
            total = total * fade + weights.sum(axis=-1)
            out = out * fade[..., None] + _product("bkgts,bksh->bkgth", weights.astype(v.dtype), v_j)
            return new_top, total, out

        # The zeros are computed from the inputs: `jax.shard_map` requires that the start of a loop varies
        # over the same mesh axes as its result.
        zeros = jnp.zeros_like(q_i, jnp.float32) + 0 * v[:, :, None, :1, :1].astype(jnp.float32)
        start = (zeros[..., 0] + MASKED, zeros[..., 0], zeros)
        if needed.size == 1:
            top, total, out = visit(i, start)
        else:
            top, total, out = jax.lax.fori_loop(0, visits[i], lambda n, s: visit(visited[i, n], s), start)
        # A skipped row of blocks (padding) has a sum of 0; the division must stay finite.
        total = jnp.maximum(total, 1e-30)
        return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

    if count == 1:
        return queries(jnp.zeros((), jnp.int32))
    out, log_total = jax.lax.map(queries, jnp.arange(count))
    return _join(out, 3), _join(log_total, 3)


def _backward(
    kernel: _Kernel, saved: _Saved, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """Compute the gradients of q, k and v, with a scan over blocks of keys and an inner loop over queries."""
    q, k, v, mask, out, log_total = saved
    block = kernel.block
    needed = _needed(mask, block)
    count = needed.shape[0]
    visited, visits = _visited(needed.T)
    # The sum over keys of probability times its gradient, which softmax's derivative subtracts. It equals the
    # product of the output with its gradient, so no second pass over the keys is needed.
    inner = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1)

    def keys(d_q: jax.Array, j: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        k_j, v_j = (jax.lax.dynamic_slice_in_dim(x, j * block, block, 2) for x in (k, v))

        def visit(i: jax.Array, state: tuple) -> tuple:
            d_q, d_k, d_v = state
            q_i, grad_i, inner_i, log_i = (
                jax.lax.dynamic_slice_in_dim(x, i * block, block, 3) for x in (q, grad, inner, log_total)
            )
            scores, slope = _scores(kernel, q_i, k_j, mask, i, j)
            weights = jnp.exp(scores - log_i[..., None])
            d_scores = weights * (_product("bkgth,bksh->bkgts", grad_i, v_j) - inner_i[..., None])
            if slope is not None:
                d_scores = d_scores * slope
            weights, d_scores = weights.astype(v.dtype), d_scores.astype(q.dtype)
            d_q_i = _product("bkgts,bksh->bkgth", d_scores, k_j)
            at = (0, 0, 0, i * block, 0)
            old = jax.lax.dynamic_slice(d_q, at, d_q_i.shape)
            d_q = jax.lax.dynamic_update_slice(d_q, old + d_q_i, at)
            # XLA's CPU compiler transposes one operand of these products. Transposing the narrow one (H)
            # here, behind a barrier, keeps it from transposing the wide one (block × block).
            grad_t, q_t = jax.lax.optimization_barrier((grad_i.swapaxes(3, 4), q_i.swapaxes(3, 4)))
            d_k = d_k + _product("bkght,bkgts->bkhs", q_t, d_scores)
            d_v = d_v + _product("bkght,bkgts->bkhs", grad_t, weights)
            return d_q, d_k, d_v

        zeros = 0 * (k_j + 0 * d_q[:, :, 0, :1, :1]).astype(jnp.float32).swapaxes(2, 3)
        if count == 1:
            d_q, d_k, d_v = visit(j, (d_q, zeros, zeros))
        else:
            start = (d_q, zeros, zeros)
            d_q, d_k, d_v = jax.lax.fori_loop(0, visits[j], lambda n, s: visit(visited[j, n], s), start)
        return d_q, (d_k.swapaxes(2, 3).astype(k.dtype), d_v.swapaxes(2, 3).astype(v.dtype))

    zeros = jnp.zeros_like(q, jnp.float32) + 0 * (grad[..., :1] + (k + v)[:, :, None, :1, :1]).astype(
        jnp.float32
    )
    if count == 1:
        d_q, (d_k, d_v) = keys(zeros, jnp.zeros((), jnp.int32))
    else:
        d_q, (d_k, d_v) = jax.lax.scan(keys, zeros, jnp.arange(count))
        d_k, d_v = _join(d_k, 2), _join(d_v, 2)
    return d_q.astype(q.dtype), d_k, d_v, None


_attend.defvjp(_forward, _backward)


def _scores(
    kernel: _Kernel, q_i: jax.Array, k_j: jax.Array, mask: _Mask, i: jax.Array, j: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Return masked float32 scores [B, K, G, block, block] of two blocks, and the soft-cap's derivative."""
    softcap, block = kernel
    scores = _product("bkgth,bksh->bkgts", q_i, k_j)
    slope = None
    if softcap is not None:
        bounded = jnp.tanh(scores / softcap)
        scores, slope = softcap * bounded, 1 - bounded * bounded
    keys, key_slots = j * block + jnp.arange(block), mask.slots.part(j * block, block)
    visible = allowed(*mask.queries(i * block, block), keys, key_slots, mask.limit)
    return jnp.where(visible[:, None, None], scores, MASKED), slope


def _needed(mask: _Mask, block: int) -> jax.Array:
    """Return which pairs of blocks (query, key) may hold an allowed pair in any row: bool [T'/b, T'/b].

    Only the smallest and largest values of each block are compared. So a pair without an allowed pair of
    slots may count as needed, but a needed pair is never missed.
    """
    arrays = (*mask.queries(), mask.slots.until, mask.slots.positions)
    queries, query_positions, until, positions = (x.reshape(x.shape[0], -1, block) for x in arrays)
    starts = block * jnp.arange(until.shape[1])
    past = starts <= queries.max(axis=2)[:, :, None]
    on_path = queries.min(axis=2)[:, :, None] < until.max(axis=2)[:, None, :]
    in_window = query_positions.min(axis=2)[:, :, None] - positions.max(axis=2)[:, None, :] < mask.limit
    return (past & on_path & in_window).any(axis=0)


def _visited(needed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return each row's true columns, in ascending order before all others, and their number."""
    # A stable sort puts the true columns first and keeps their order.
    return jnp.argsort(~needed, axis=1, stable=True).astype(jnp.int32), needed.sum(axis=1, dtype=jnp.int32)


def _join(x: jax.Array, axis: int) -> jax.Array:
    """Join blocks [count, ..., block, ...] along `axis` of the result [..., count * block, ...]."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # Scores and sums are float32 even for bfloat16 operands, because softmax needs the precision.
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
