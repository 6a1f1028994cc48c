"""Attention on a CPU by the kernels of `cpu_kernels`, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jora_core.model.attention_slots import Slots, reach, take_slots
from jora_core.model.kernels.cpu_kernels import BACKWARD, FORWARD, usable
from jora_core.model.rematerialization import KEPT_ATTENTION
from jora_core.parallel.collectives import as_varying

# Slots of a block: small, so that little is computed of what no query sees. Adjacent blocks of keys are
# computed together.
_BLOCK_SLOTS = 64


class _Static(NamedTuple):
    """Static settings of a call: the factor of the scores, and the slots of a block."""

    scale: float
    block: int


class _Mask(NamedTuple):
    """Bounds and positions int32 [B, T] of all slots, and the limit of the distance, int32 [1]."""

    until: jax.Array
    positions: jax.Array
    limit: jax.Array


_Saved = tuple[jax.Array, jax.Array, jax.Array, _Mask, jax.Array, jax.Array]


def cpu_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: Slots,
    *,
    scale: float,
    window: jax.Array | int = 0,
    block: int | None = None,
    at: jax.Array | None = None,
) -> jax.Array:
    """Compute softmax attention of N query heads over K key/value heads, all in float32.

    Args:
        q: [B, T, N, H], N a multiple of K.
        k: [B, T, K, H].
        v: [B, T, K, H].
        slots: the attention mask.
        scale: factor of the scores.
        window: attention window in positions, a scalar that may differ by layer; 0 for none.
        block: slots of a block; 64 if None.
        at: int32 [G, M], the only queries, see `blockwise_attention`; None for all.

    Returns:
        [B, T, N, H], or [G, M, N, H] with `at`. The values of padding are finite and without meaning.

    Raises:
        RuntimeError: the kernels are not `usable` here.
    """
    if not usable():
        raise RuntimeError("the kernels cannot be used here")
    static = _Static(scale, min(block or _BLOCK_SLOTS, q.shape[1]))
    limit = reach(window).reshape(1)
    if at is None:
        return _attend(static, q, k, v, _Mask(slots.until, slots.positions, limit))
    joined = slots.joined(len(at))
    k, v = (x.reshape(len(at), -1, *x.shape[2:]) for x in (k, v))
    mask = _Mask(joined.until, joined.positions, limit)
    positions = jnp.take_along_axis(joined.positions, at, axis=1, mode="clip")
    return _call_forward(static, take_slots(q, at), k, v, (at, positions), mask)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, mask: _Mask) -> jax.Array:
    return _forward(static, q, k, v, mask)[0]


def _forward(
    static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, mask: _Mask
) -> tuple[jax.Array, _Saved]:
    slots = jnp.broadcast_to(jnp.arange(q.shape[1], dtype=jnp.int32), q.shape[:2])
    out, log_total = _call_forward(static, q, k, v, (slots, mask.positions), mask)
    # Both are named: a rematerialization policy that keeps only the output would run the whole forward pass
    # again for the log-sum-exp.
    out = checkpoint_name(out, KEPT_ATTENTION)
    log_total = checkpoint_name(log_total, KEPT_ATTENTION)
    return out, (q, k, v, mask, out, log_total)


def _backward(
    static: _Static, saved: _Saved, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, mask, out, log_total = saved
    given = (q, k, v, mask, static), (out, log_total, grad)
    d_q, d_k, d_v = _call(BACKWARD, *given, (q.shape, k.shape, v.shape))
    return d_q, d_k, d_v, None


_attend.defvjp(_forward, _backward)


def _call_forward(
    static: _Static,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    queries: tuple[jax.Array, jax.Array],
    mask: _Mask,
) -> tuple[jax.Array, jax.Array]:
    """Return the output [B, Q, N, H] and the log-sum-exp of each query's scores, float32 [B, N, Q, 1]."""
    shapes = q.shape, (q.shape[0], q.shape[2], q.shape[1], 1)
    out, log_total = _call(FORWARD, (q, k, v, mask, static), queries, shapes)
    return out, log_total


def _call(
    kernel: str,
    given: tuple[jax.Array, jax.Array, jax.Array, _Mask, _Static],
    others: Sequence[jax.Array],
    shapes: Sequence[tuple[int, ...]],
) -> Sequence[jax.Array]:
    """Call a kernel with what all kernels take and its other arguments; return results of these shapes."""
    q, k, v, mask, static = given
    block, scale = jnp.full((1,), static.block, jnp.int32), jnp.full((1,), static.scale, jnp.float32)
    types = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    results = jax.ffi.ffi_call(kernel, types)(q, k, v, *mask, block, scale, *others)
    return [as_varying(result, q, k, v) for result in results]
