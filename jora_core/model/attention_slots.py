"""Token slots of a row, and which of them each slot sees: the whole attention mask."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

# Finite, so that a row with nothing allowed (padding) gives finite values and no NaN in either direction.
MASKED = -1e30


@flax.struct.dataclass
class Slots:
    """What decides who sees whom: int32 [B, T] each.

    A key is seen from its own slot on, up to and without slot `until`: to the end of its example where that
    stands alone, of the last branch that goes on from it where examples share what they begin with (groups
    stand depth first); 0 is padding. That is FlashMask's bound of a column (arXiv:2410.01359). And it is seen
    from fewer than `window` positions on.
    """

    until: jax.Array
    positions: jax.Array

    def part(self, start: Any, size: int) -> Slots:
        """`size` slots from `start` on."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), self)


def allowed(
    queries: jax.Array,
    query_positions: jax.Array,
    keys: jax.Array,
    key_slots: Slots,
    window: jax.Array | int,
) -> jax.Array:
    """The mask bool [B, Tq, Tk] of queries in slots [Tq] with positions [B, Tq] and keys in slots [Tk]."""
    after = keys[None, :] > queries[:, None]
    there = queries[:, None] < key_slots.until[:, None, :]
    near = query_positions[:, :, None] - key_slots.positions[:, None, :] < reach(window)
    return there & near & ~after


def reach(window: jax.Array | int) -> jax.Array:
    """Positions between query and key must be fewer than this: the window, or any number for 0."""
    window = jnp.asarray(window, jnp.int32)
    return jnp.where(window > 0, window, jnp.iinfo(jnp.int32).max)
