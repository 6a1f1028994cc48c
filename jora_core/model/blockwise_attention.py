"""Attention in blocks: exact softmax attention that never holds a T x T array, forward or backward.

FlashAttention's algorithm (arXiv:2205.14135, 2307.08691) written with XLA loops: per block of queries a loop
over the blocks of keys keeps a running maximum and sum; the backward pass computes the probabilities again
from the saved log-sum-exp. Blocks in which nothing is allowed (the future, other examples, other branches,
beyond the window) are skipped, so a packed row costs what its examples cost.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jora_core.model.attention_slots import MASKED, Slots, allowed, reach
from jora_core.model.rematerialization import KEPT_ATTENTION

# Slots of a block: its scores stay in a CPU's cache, its products keep an accelerator busy.
BLOCK_SLOTS = {"cpu": 128}
_OTHER_BLOCK_SLOTS = 512


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
) -> jax.Array:
    """Softmax attention of N query heads over K key/value heads, N a multiple of K, without repeating them.

    Query head n uses key/value head n // (N / K): the heads of one group are neighbours, as in Llama weights.

    Args:
        q: [B, T, N, H]; k, v: [B, T, K, H].
        slots: who sees whom.
        scale: factor of the scores; `softcap` c then bounds them as c·tanh(scores / c) (Gemma 2).
        window: most positions between query and key, a scalar that may differ by layer; 0 for no limit.
        block: slots of a block; chosen by platform if None.

    Returns:
        [B, T, N, H] in the type of `q`. Rows with nothing allowed hold finite values without meaning.
    """
    length, block = q.shape[1], _block(q.shape[1], block)
    grouped = _grouped(q, k, v, scale, block)
    slots, limit = _filled(slots, block), reach(window)
    run = partial(_attend, softcap, block)
    # A row's scores fit into a CPU's cache, a batch's do not; and only a single row can skip its own blocks.
    if jax.default_backend() == "cpu" and q.shape[0] > 1:

        def one_row(_: None, row: tuple) -> tuple[None, jax.Array]:
            return None, run(*jax.tree.map(lambda x: x[None], row), limit)[0]

        # Two rows an iteration, whose small steps need not wait for each other: a tenth less time at 1,024.
        return _flat(jax.lax.scan(one_row, None, (*grouped, slots), unroll=2)[1], length)
    return _flat(run(*grouped, slots, limit), length)


def forward_pass(
    q: jax.Array, k: jax.Array, v: jax.Array, slots: Slots, *, scale: float, window: int = 0
) -> tuple[jax.Array, jax.Array]:
    """`blockwise_attention` for whoever brings a derivative of his own: also the log-sum-exp of the scores.

    Returns:
        [B, T, N, H] in the type of `q`, and float32 [B, K, N/K, T'] for `backward_pass`, where T' is T
        filled up to whole blocks.
    """
    length, block = q.shape[1], _block(q.shape[1])
    grouped = _grouped(q, k, v, scale, block)
    out, log_total = _all_queries(None, block, *grouped, _filled(slots, block), reach(window))
    return _flat(out, length), log_total


def backward_pass(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: Slots,
    out: jax.Array,
    log_total: jax.Array,
    grad: jax.Array,
    *,
    scale: float,
    window: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v from what `forward_pass` gave and the gradient of its first result."""
    block = _block(q.shape[1])
    grouped, back = jax.vjp(lambda q, k, v: _grouped(q, k, v, scale, block), q, k, v)
    out, grad = (_by_head(x, k.shape[2], block) for x in (out, grad))
    saved = (*grouped, _filled(slots, block), reach(window), out, log_total)
    return back(_backward(None, block, saved, grad)[:3])


def filled_length(length: int) -> int:
    """Slots of a row of this length, filled up to whole blocks."""
    return length + -length % _block(length)


def _block(length: int, block: int | None = None) -> int:
    return min(block or BLOCK_SLOTS.get(jax.default_backend(), _OTHER_BLOCK_SLOTS), length)


def _filled(tree: Any, block: int) -> Any:
    """Arrays [B, T, ...] with zeros behind their last slot, so that T is a multiple of the block."""

    def fill(x: jax.Array) -> jax.Array:
        short = -x.shape[1] % block
        return jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2))) if short else x

    return jax.tree.map(fill, tree)


def _by_head(x: jax.Array, groups: int, block: int) -> jax.Array:
    """[B, T, N, H] as [B, K, N/K, T', H]."""
    x = _filled(x, block)
    return x.reshape(*x.shape[:2], groups, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def _flat(x: jax.Array, length: int) -> jax.Array:
    """[B, K, N/K, T', H] as [B, T, N, H]."""
    x = x.transpose(0, 3, 1, 2, 4)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :length]


def _grouped(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: float, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [B, K, N/K, T', H], scaled, and k, v [B, K, T', H] from [B, T, heads, H]."""
    # Batch axes first: XLA's CPU matmul then takes each head without a hidden transpose.
    q = _by_head((q * scale).astype(q.dtype), k.shape[2], block)
    k, v = (_filled(x, block).transpose(0, 2, 1, 3) for x in (k, v))
    return q, k, v


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    softcap: float | None,
    block: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: Slots,
    limit: jax.Array,
) -> jax.Array:
    """q [B, K, G, T, H], scaled, over k, v [B, K, T, H], T a multiple of the block; out like q."""
    return _forward(softcap, block, q, k, v, slots, limit)[0]


def _forward(softcap, block, q, k, v, slots, limit):
    out, log_total = _all_queries(softcap, block, q, k, v, slots, limit)
    out = checkpoint_name(out, KEPT_ATTENTION)
    log_total = checkpoint_name(log_total, KEPT_ATTENTION)
    return out, (q, k, v, slots, limit, out, log_total)


def _all_queries(softcap, block, q, k, v, slots, limit):
    """The output like q, and the log-sum-exp of each query's scores, float32 [B, K, N/K, T']."""
    needed = _needed(slots, block, limit)
    count = needed.shape[0]
    # A long row of many groups would spend its time on passing over blocks of the others.
    first = jnp.where(needed.any(axis=1), needed.argmax(axis=1), count)

    def queries(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_i = jax.lax.dynamic_slice_in_dim(q, i * block, block, 3)

        def visit(j: jax.Array, state: tuple) -> tuple:
            top, total, out = state
            k_j, v_j = (jax.lax.dynamic_slice_in_dim(x, j * block, block, 2) for x in (k, v))
            scores, _ = _scores(q_i, k_j, slots, i, j, block, softcap, limit)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            fade = jnp.exp(top - new_top)
            total = total * fade + weights.sum(axis=-1)
            out = out * fade[..., None] + _product("bkgts,bksh->bkgth", weights.astype(v.dtype), v_j)
            return new_top, total, out

        # Derived from the inputs, so that under shard_map they vary over the same mesh axes.
        zeros = jnp.zeros_like(q_i, jnp.float32) + 0 * v[:, :, None, :1, :1].astype(jnp.float32)
        start = (zeros[..., 0] + MASKED, zeros[..., 0], zeros)
        if count == 1:
            top, total, out = visit(i, start)
        else:
            top, total, out = jax.lax.fori_loop(
                first[i], i + 1, lambda j, s: jax.lax.cond(needed[i, j], visit, lambda _, s: s, j, s), start
            )
        total = jnp.maximum(total, 1e-30)
        return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

    if count == 1:
        return queries(jnp.zeros((), jnp.int32))
    out, log_total = jax.lax.map(queries, jnp.arange(count))
    return _join(out, 3), _join(log_total, 3)


def _backward(softcap, block, saved, grad):
    q, k, v, slots, limit, out, log_total = saved
    needed = _needed(slots, block, limit)
    count = needed.shape[0]
    end = jnp.where(needed.any(axis=0), count - needed[::-1].argmax(axis=0), 0)
    inner = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1)

    def keys(d_q: jax.Array, j: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        k_j, v_j = (jax.lax.dynamic_slice_in_dim(x, j * block, block, 2) for x in (k, v))

        def visit(i: jax.Array, state: tuple) -> tuple:
            d_q, d_k, d_v = state
            q_i, grad_i, inner_i, log_i = (
                jax.lax.dynamic_slice_in_dim(x, i * block, block, 3) for x in (q, grad, inner, log_total)
            )
            scores, slope = _scores(q_i, k_j, slots, i, j, block, softcap, limit)
            weights = jnp.exp(scores - log_i[..., None])
            d_scores = weights * (_product("bkgth,bksh->bkgts", grad_i, v_j) - inner_i[..., None])
            if slope is not None:
                d_scores = d_scores * slope
            weights, d_scores = weights.astype(v.dtype), d_scores.astype(q.dtype)
            d_q_i = _product("bkgts,bksh->bkgth", d_scores, k_j)
            at = (0, 0, 0, i * block, 0)
            old = jax.lax.dynamic_slice(d_q, at, d_q_i.shape)
            d_q = jax.lax.dynamic_update_slice(d_q, old + d_q_i, at)
            # Transposing the narrow operand by hand keeps XLA's CPU compiler from transposing the wide one.
            grad_t, q_t = jax.lax.optimization_barrier((grad_i.swapaxes(3, 4), q_i.swapaxes(3, 4)))
            d_k = d_k + _product("bkght,bkgts->bkhs", q_t, d_scores)
            d_v = d_v + _product("bkght,bkgts->bkhs", grad_t, weights)
            return d_q, d_k, d_v

        zeros = 0 * (k_j + 0 * d_q[:, :, 0, :1, :1]).astype(jnp.float32).swapaxes(2, 3)
        if count == 1:
            d_q, d_k, d_v = visit(j, (d_q, zeros, zeros))
        else:
            d_q, d_k, d_v = jax.lax.fori_loop(
                j,
                end[j],
                lambda i, s: jax.lax.cond(needed[i, j], visit, lambda _, s: s, i, s),
                (d_q, zeros, zeros),
            )
        return d_q, (d_k.swapaxes(2, 3).astype(k.dtype), d_v.swapaxes(2, 3).astype(v.dtype))

    zeros = jnp.zeros_like(q, jnp.float32) + 0 * (grad[..., :1] + (k + v)[:, :, None, :1, :1]).astype(
        jnp.float32
    )
    if count == 1:
        d_q, (d_k, d_v) = keys(zeros, jnp.zeros((), jnp.int32))
    else:
        d_q, (d_k, d_v) = jax.lax.scan(keys, zeros, jnp.arange(count))
        d_k, d_v = _join(d_k, 2), _join(d_v, 2)
    return d_q.astype(q.dtype), d_k, d_v, None, None


_attend.defvjp(_forward, _backward)


def _scores(q_i, k_j, slots, i, j, block, softcap, limit):
    """Masked float32 scores [B, K, G, block, block], and with a soft-cap its derivative."""
    scores = _product("bkgth,bksh->bkgts", q_i, k_j)
    slope = None
    if softcap is not None:
        bounded = jnp.tanh(scores / softcap)
        scores, slope = softcap * bounded, 1 - bounded * bounded
    queries, keys = (n * block + jnp.arange(block) for n in (i, j))
    query_slots, key_slots = (slots.part(n * block, block) for n in (i, j))
    mask = allowed(queries, query_slots.positions, keys, key_slots, limit)
    return jnp.where(mask[:, None, None], scores, MASKED), slope


def _needed(slots: Slots, block: int, limit: jax.Array) -> jax.Array:
    """Which pairs of blocks (query, key) may hold an allowed pair of slots, in any row: bool [T/b, T/b].

    From the ends of each block, so with a window it may say yes too often, and never no.
    """
    until, positions = (x.reshape(x.shape[0], -1, block) for x in (slots.until, slots.positions))
    starts = block * jnp.arange(until.shape[1])
    seen = starts[:, None] < until.max(axis=2)[:, None, :]
    near = positions.min(axis=2)[:, :, None] - positions.max(axis=2)[:, None, :] < limit
    return (seen & near).any(axis=0)


def _join(x: jax.Array, axis: int) -> jax.Array:
    """Blocks [count, ..., block, ...] to [..., count * block, ...], `axis` as it is in the result."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
