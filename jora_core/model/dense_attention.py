"""Dense attention with an explicit mask, for decoding steps and as the reference for other kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jora_core.model.attention_slots import MASKED, Slots, allowed


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float, softcap: float | None = None
) -> jax.Array:
    """Compute softmax attention of N query heads over K key/value heads, all scores in memory at once.

    Args:
        q: [B, T, N, H], N a multiple of K.
        k: [B, C, K, H].
        v: [B, C, K, H].
        mask: bool [B, T, C].
        scale: factor of the scores.
        softcap: see `jora_core.model.blockwise_attention.blockwise_attention`.

    Returns:
        [B, T, N, H] in the type of `q`.
    """
    # The scale is applied to q, T × H numbers of a head, and not to its T × C scores.
    grouped = (q * scale).astype(q.dtype).reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    # In float32, as in the other kernels: the 8 significant bits of bfloat16 are too few for a sum over keys.
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
    out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out.reshape(q.shape).astype(q.dtype)


def example_mask(slots: Slots, window: jax.Array | int = 0) -> jax.Array:
    """Compute the attention mask of whole rows, bool [B, T, T] (query, key)."""
    slot = jnp.arange(slots.until.shape[1])
    return allowed(slot, slots.positions, slot, slots, window)
