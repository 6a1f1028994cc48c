"""Which blocks of queries and keys of a batch hold an allowed pair, as lists that a kernel walks along.

The lists follow from the rows alone, so they are computed once a batch and serve every layer and both passes.
A kernel loops over the listed blocks only: neither a launch nor a step of a loop is spent on the others. The
idea is that of FlexAttention's block mask (arXiv:2412.05496), the bounds of a block are those of FlashMask
(arXiv:2410.01359).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from jora_core.model.attention_slots import Slots, reach

# Kinds of a pair of blocks, in the order in which a list has them.
_PART, _WHOLE, _NONE = 0, 1, 2


@flax.struct.dataclass
class VisibleBlocks:
    """For each block of one side, the blocks of the other side that it shares an allowed pair with.

    Attributes:
        order: int32 [..., blocks, others], numbers of the other side's blocks. First those in which only a
            part of the pairs is allowed, then those in which all are, then the rest, which no kernel visits.
        counts: int32 [..., blocks, 2], how many are of the first kind, and how many of the first two.
    """

    order: jax.Array
    counts: jax.Array


def pair_kinds(slots: Slots, window: jax.Array | int, query_block: int, key_block: int) -> jax.Array:
    """Compute of each pair of blocks whether a part, all or none of its pairs of slots are allowed.

    Only the smallest and largest values of each block are compared. So a pair of blocks without an allowed
    pair of slots may count as allowed in part, but an allowed pair is never missed, and a pair of blocks that
    counts as whole is.

    Args:
        slots: the attention mask, rows of whole blocks.
        window: attention window in positions, 0 for none.
        query_block: slots of a block of queries.
        key_block: slots of a block of keys.

    Returns:
        int32 [B, query blocks, key blocks].
    """
    limit = reach(window)
    keys, queries = (_blocks(slots.until, key_block), _blocks(slots.positions, query_block))
    key_positions = _blocks(slots.positions, key_block)
    first_query = query_block * jnp.arange(queries.shape[1])[:, None]
    first_key = key_block * jnp.arange(keys.shape[1])
    last_query, last_key = first_query + query_block - 1, first_key + key_block - 1
    nearest = queries.min(axis=2)[:, :, None] - key_positions.max(axis=2)[:, None, :]
    farthest = queries.max(axis=2)[:, :, None] - key_positions.min(axis=2)[:, None, :]
    some = (first_key <= last_query) & (first_query < keys.max(axis=2)[:, None, :]) & (nearest < limit)
    every = (last_key <= first_query) & (last_query < keys.min(axis=2)[:, None, :]) & (farthest < limit)
    return jnp.where(some, jnp.where(every, _WHOLE, _PART), _NONE).astype(jnp.int32)


def listed(kinds: jax.Array) -> VisibleBlocks:
    """Return the lists of blocks for the kinds [..., blocks, others] of their pairs."""
    order = jnp.argsort(kinds, axis=-1, stable=True).astype(jnp.int32)
    counts = jnp.stack([(kinds < last).sum(axis=-1) for last in (_WHOLE, _NONE)], axis=-1)
    return VisibleBlocks(order, counts.astype(jnp.int32))


def _blocks(x: jax.Array, block: int) -> jax.Array:
    return x.reshape(x.shape[0], -1, block)
