"""Dropout with a mask that does not depend on the mesh."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jora_core.parallel.collectives import data_index, tensor_index, tensor_shards

# The random numbers of a row-parallel input are drawn in this many parts. So up to this many devices draw
# only their own parts; more devices draw all and take theirs.
_PARTS = 8


def dropout(
    x: jax.Array, rate: float, key: jax.Array, *, by_inputs: bool = False, by_tokens: bool = False
) -> jax.Array:
    """Set elements to zero with probability `rate` (rounded to 1/65,536) and scale the others up.

    The mask depends only on the key and on the number of each row and token in the whole batch. So the mask
    is the same on any mesh. Each random 32-bit word gives two draws of 16 bits, because random numbers are
    the larger part of an adapter's cost on a CPU.

    Args:
        x: [B, T, in].
        rate: probability of a zero.
        key: random key of one projection in one layer of one step.
        by_inputs: whether x holds only this device's part of the inputs.
        by_tokens: whether x holds only this device's tokens.
    """
    batch, length, width = x.shape
    shards = tensor_shards() if by_inputs else 1
    parts = math.gcd(_PARTS, width * shards) if by_inputs else 1
    mine = parts // shards if parts % shards == 0 else parts
    first = 0 if mine == parts else tensor_index() * mine
    rows = data_index() * batch + jnp.arange(batch)
    tokens = (tensor_index() * length if by_tokens else 0) + jnp.arange(length)
    size = width * shards // parts

    def draw(row: jax.Array, token: jax.Array, part: jax.Array) -> jax.Array:
        here = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, row), token), part)
        return jax.random.bits(here, (-(-size // 2),), jnp.uint32)

    over_parts = jax.vmap(draw, (None, None, 0))
    over_tokens = jax.vmap(over_parts, (None, 0, None))
    words = jax.vmap(over_tokens, (0, None, None))(rows, tokens, first + jnp.arange(mine))
    draws = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(batch, length, mine, -1)[..., :size]
    draws = draws.reshape(batch, length, -1)
    if draws.shape[-1] != width:  # more devices than parts
        draws = jax.lax.dynamic_slice_in_dim(draws, tensor_index() * width, width, 2)
    keep = draws >= round(rate * 65536)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
