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
    per_group = heads // groups
    # Batch axes first: XLA's CPU matmul then takes each head without a hidden transpose.
    q = q.reshape(batch, queries, groups, per_group, width).transpose(0, 2, 3, 1, 4)
    q = (q * width**-0.5).reshape(batch, groups, per_group * queries, width)
    k = k.transpose(0, 2, 1, 3)
    v = v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bkth,bksh->bkts", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, groups, per_group, queries, keys) + bias
    # Dividing after the product with V instead of before it saves a pass over [.., T, S] each way.
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1)
    flat = weights.astype(v.dtype).reshape(batch, groups, per_group * queries, keys)
    mixed = jnp.einsum("bkts,bksh->bkth", flat, v, preferred_element_type=jnp.float32)
    mixed = mixed.reshape(batch, groups, per_group, queries, width) / total[..., None]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, width).astype(q.dtype)
