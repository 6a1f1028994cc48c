"""The one attention of the core: grouped-query, masked by example and by suffix.

Training, packing, scoring of choices and generation all go through :func:`attention`, so a blockwise or fused
kernel replaces it in one place. The mask rule (one row holds several segments, a segment one shared prefix
and its suffixes)::

    allowed(q, k) = k <= q and segment[k] == segment[q] > 0 and (suffix[k] == 0 or suffix[k] == suffix[q])

A suffix therefore sees its segment's prefix and itself, never another suffix: computing S suffixes over one
prefix equals computing S whole examples apart.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jora_core.sharding import data_shards

# Finite, so that a row with nothing allowed (padding) gives a mean of values and no NaN in either direction.
_MASKED = -1e30


def example_mask(segment_ids: jax.Array, suffix_ids: jax.Array) -> jax.Array:
    """The rule above for one batch of rows: int [B, T] twice to bool [B, T, T] (query, key)."""
    slot = jnp.arange(segment_ids.shape[1])
    causal = slot[:, None] >= slot[None, :]
    same_segment = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids > 0)[:, :, None]
    visible = (suffix_ids[:, None, :] == 0) | (suffix_ids[:, :, None] == suffix_ids[:, None, :])
    return causal & same_segment & visible


def mask_to_bias(mask: jax.Array) -> jax.Array:
    """Bool [B, T, S] to the float32 [B, 1, 1, T, S] that is added to the scores; made once for all layers."""
    return jnp.where(mask, 0.0, _MASKED).astype(jnp.float32)[:, None, None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """Softmax attention of N query heads over K key/value heads, N a multiple of K, without repeating them.

    Query head n uses key/value head n // (N / K): the heads of one group are neighbours, as in Llama weights.

    Args:
        q: [B, T, N, H]; k, v: [B, S, K, H]; bias: float32 [B, 1, 1, T, S] of `mask_to_bias`.

    Returns:
        [B, T, N, H] in the type of `q`. Rows with nothing allowed hold finite values without meaning.
    """
    batch, queries, heads, width = q.shape
    keys, groups = k.shape[1], k.shape[2]
    # Batch axes first: XLA's CPU matmul then takes each head without a hidden transpose.
    q = (q * width**-0.5).reshape(batch, queries, groups, -1, width).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, groups, -1, width)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    bias = bias[:, 0]
    # A row's scores fit into a CPU's cache, a batch's do not: row by row takes 39 ms forward and back where
    # all at once takes 61 (16 rows of 256, 4 heads of 32). Rows on several devices must stay parallel.
    if jax.default_backend() == "cpu" and data_shards() == 1 and batch > 1 and queries * keys >= 4096:
        rows = jax.lax.map(lambda row: _grouped(*(part[None] for part in row))[0], (q, k, v, bias))
    else:
        rows = _grouped(q, k, v, bias)
    rows = rows.reshape(batch, groups, -1, queries, width).transpose(0, 3, 1, 2, 4)
    return rows.reshape(batch, queries, heads, width)


@jax.custom_vjp
def _grouped(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """Attention of q [B, K, G*T, H], scaled, over k, v [B, K, S, H] with bias [B, 1, T, S]; G heads a group.

    The backward pass is written out as in FlashAttention (arXiv:2205.14135, algorithm 4): the probabilities
    are computed again from the saved log-sum-exp, so nothing of size T x S is kept between the passes.
    """
    return _grouped_forward(q, k, v, bias)[0]


def _grouped_forward(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    scores = _scores(q, k, bias)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    # Dividing after the product with V instead of before it saves a pass over the weights.
    out = (_product("bkts,bksh->bkth", weights.astype(v.dtype), v) / total).astype(q.dtype)
    return out, (q, k, v, bias, out, top + jnp.log(total))


def _grouped_backward(saved: tuple, grad: jax.Array) -> tuple:
    q, k, v, bias, out, log_total = saved
    weights = jnp.exp(_scores(q, k, bias) - log_total)
    inner = jnp.sum(out.astype(jnp.float32) * grad, axis=-1, keepdims=True)
    d_scores = weights * (_product("bkth,bksh->bkts", grad, v) - inner)
    weights, d_scores = weights.astype(v.dtype), d_scores.astype(q.dtype)
    # Transposing the narrow operand by hand keeps XLA's CPU compiler from transposing the wide one.
    grad_t, q_t = jax.lax.optimization_barrier((grad.swapaxes(2, 3), q.swapaxes(2, 3)))
    d_q = _product("bkts,bksh->bkth", d_scores, k)
    d_k = _product("bkht,bkts->bkhs", q_t, d_scores).swapaxes(2, 3)
    d_v = _product("bkht,bkts->bkhs", grad_t, weights).swapaxes(2, 3)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _scores(q: jax.Array, k: jax.Array, bias: jax.Array) -> jax.Array:
    """Float32 scores [B, K, G*T, S]; the bias is shared by the G heads of a group."""
    scores = _product("bkth,bksh->bkts", q, k)
    per_head = scores.reshape(*scores.shape[:2], -1, *bias.shape[2:])
    return (per_head + bias[:, :, None]).reshape(scores.shape)


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
