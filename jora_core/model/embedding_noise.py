"""Noise on the embeddings of a training step (NEFTune, arXiv:2310.05914), the same on any mesh."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jora_core.parallel.collectives import data_index, tensor_index


def embedding_noise(x: jax.Array, alpha: float, length: int, key: jax.Array) -> jax.Array:
    """Draw noise for embeddings, uniform in ±α/√(T·D).

    T counts the tokens of the row with its padding, as in transformers and trl. So the noise of a packed row
    is that of one long text.

    Args:
        x: embeddings [B, T, D], or this device's tokens [B, T/N, D].
        alpha: α, 5 to 15 in the paper.
        length: T.
        key: random key of the step.

    Returns:
        The noise, of the shape and type of `x`.
    """
    batch, own, width = x.shape
    bound = alpha / math.sqrt(length * width)
    rows = data_index() * batch + jnp.arange(batch)
    tokens = (tensor_index() * own if own != length else 0) + jnp.arange(own)

    def draw(row: jax.Array, token: jax.Array) -> jax.Array:
        here = jax.random.fold_in(jax.random.fold_in(key, row), token)
        return jax.random.uniform(here, (width,), jnp.float32, -bound, bound)

    return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(rows, tokens).astype(x.dtype)
