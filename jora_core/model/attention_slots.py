"""The attention mask of rows of token slots, stored as one bound for each slot."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

# Finite: with minus infinity, a query without any allowed key (padding) would give NaN, forward and backward.
MASKED = -1e30


@flax.struct.dataclass
class Slots:
    """The token slots of a batch's rows, as the arrays that define the attention mask.

    A query in slot t attends to the key in slot s if s <= t < until[s], and if their distance in positions is
    less than `window`. This is the column bound of FlashMask (arXiv:2410.01359): one number for each key,
    instead of the T numbers of a mask. One bound suffices because groups are laid out depth first, so all
    slots that may attend to a key are adjacent.

    Attributes:
        until: int32 [B, T], first later slot that may not attend to this slot: the end of the slot's example,
            or of the last branch that continues from the slot; 0 in padding.
        positions: int32 [B, T], position of the token within its own example.
    """

    until: jax.Array
    positions: jax.Array

    def part(self, start: Any, size: int) -> Slots:
        """Return the `size` slots of each row from slot `start` on."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), self)

    def joined(self, blocks: int) -> Slots:
        """Return the slots [G, B/G T] of each of G blocks of B/G rows as one long row.

        A slot's bound ends in its own row, so no slot attends to one of another row.
        """
        rows, length = self.until.shape
        start = length * (jnp.arange(rows) % (rows // blocks))[:, None]
        until = jnp.where(self.until > 0, self.until + start, 0)
        return jax.tree.map(lambda x: x.reshape(blocks, -1), Slots(until, self.positions))


def allowed(
    queries: jax.Array,
    query_positions: jax.Array,
    keys: jax.Array,
    key_slots: Slots,
    window: jax.Array | int,
) -> jax.Array:
    """Compute the attention mask of given queries and keys.

    Args:
        queries: int [Tq], [1, Tq] or [B, Tq], slots of the queries.
        query_positions: int32 [B, Tq], positions of the queries within their examples.
        keys: int [Tk], slots of the keys.
        key_slots: bounds and positions [B, Tk] of the keys.
        window: attention window in positions, 0 for none.

    Returns:
        bool [B, Tq, Tk].
    """
    # By slot and not by position: tokens of two branches have equal positions, but one order of slots.
    causal = keys <= queries[..., None]
    on_path = queries[..., None] < key_slots.until[:, None, :]
    in_window = query_positions[:, :, None] - key_slots.positions[:, None, :] < reach(window)
    return on_path & in_window & causal


def reach(window: jax.Array | int) -> jax.Array:
    """Return the limit of the distance between query and key: the window, or the largest int32 for 0."""
    # The window may be a traced value, on which Python cannot branch. So no window is a limit that no
    # distance reaches.
    window = jnp.asarray(window, jnp.int32)
    return jnp.where(window > 0, window, jnp.iinfo(jnp.int32).max)


def take_slots(x: jax.Array, at: jax.Array) -> jax.Array:
    """Gather [G, M, ...] from x [B, T, ...] at slots int32 [G, M], numbered within blocks of B/G rows."""
    rows = x.reshape(at.shape[0], -1, *x.shape[2:])
    # Every slot is valid. The default mode would compare each with the bounds, to fill the others with NaN.
    return jnp.take_along_axis(rows, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1, mode="clip")
