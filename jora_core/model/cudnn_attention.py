"""cuDNN's flash attention on NVIDIA devices where it applies, blockwise attention everywhere else.

cuDNN knows causal attention within one example, no packed rows and no shared prefixes. So there are two
choices: at compile time by what is static (device, shapes, type, soft-cap, window), and per batch by what its
rows hold. Every row's padding stands behind its example, where causal attention never looks: cuDNN gets no
lengths at all, whose kernels fail or give NaN at some row lengths, and computes the padding too.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jora_core.model.attention_slots import Slots
from jora_core.model.blockwise_attention import (
    backward_pass,
    blockwise_attention,
    filled_length,
    forward_pass,
)
from jora_core.model.rematerialization import KEPT_ATTENTION
from jora_core.specs.common import AttentionChoice

TYPES = ("bfloat16", "float16")
# cuDNN's own limits are wider on some devices (heads of 256 on Hopper, any length): these hold on all.
_MOST_WIDTH = 128
_LENGTH_MULTIPLE = 64
_FIRST_CAPABILITY = (8, 0)


class SelfAttention(Protocol):
    """Attention over whole rows."""

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, layer_window: jax.Array | int) -> jax.Array:
        """q [B, T, N, H] over k, v [B, T, K, H]: like q."""
        ...


def self_attention(
    slots: Slots,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = 0,
    choice: AttentionChoice = "auto",
) -> SelfAttention:
    """Attention over these slots for every layer: (q, k, v, the layer's window) to [B, T, N, H].

    Args:
        slots, scale, softcap: see `jora_core.model.blockwise_attention.blockwise_attention`.
        window: of all layers, 0 for none; None where layers differ.
        choice: auto takes cuDNN where it applies, blockwise never does.
    """
    capability = cuda_capability() if choice == "auto" else None
    plain = None if capability is None else plain_rows(slots)  # once, not in every layer

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer_window: jax.Array | int) -> jax.Array:
        applies = flash_applies(
            q.shape, k.shape, q.dtype, softcap=softcap, window=window, capability=capability
        )
        if plain is None or window is None or not applies:
            return blockwise_attention(q, k, v, slots, scale=scale, softcap=softcap, window=layer_window)
        return _either(scale, window, q, k, v, slots, plain)

    return attend


def flash_applies(
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    dtype: jnp.dtype,
    *,
    softcap: float | None,
    window: int | None,
    capability: tuple[int, int] | None,
) -> bool:
    """Whether cuDNN can take calls of this kind, as far as that is known before the rows are.

    Args:
        q_shape: [B, T, N, H]; k_shape: [B, T, K, H].
        window: None where layers differ.
        capability: of the CUDA device, None elsewhere.
    """
    _, length, heads, width = q_shape
    return (
        capability is not None
        and capability >= _FIRST_CAPABILITY
        and jnp.dtype(dtype).name in TYPES
        and softcap is None
        and window is not None
        and k_shape[1] == length
        and length % _LENGTH_MULTIPLE == 0
        and heads % k_shape[2] == 0
        and width <= _MOST_WIDTH
        and width % 8 == 0
    )


def cuda_capability() -> tuple[int, int] | None:
    """Compute capability of the CUDA devices that programs run on; None on any other platform."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return None
    major, minor = device.compute_capability.split(".")
    return int(major), int(minor)


def plain_rows(slots: Slots) -> jax.Array:
    """Whether every row is one example, with nothing but padding behind it: bool scalar."""
    until, slot = slots.until, jnp.arange(slots.until.shape[1])
    # One example, then padding: every slot is seen to the same end, the first that holds nothing.
    length = until[:, :1]
    return ((until == jnp.where(slot < length, length, 0)) & ((slots.positions == slot) | (until == 0))).all()


def flash_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, window: int = 0) -> jax.Array:
    """cuDNN's causal attention over whole rows, shapes as in `flash_applies`: [B, T, N, H] like `q`.

    Args:
        window: most slots between query and key, 0 for no limit.
    """
    # cuDNN counts the slots before a query, we count the query's own too.
    near = (window - 1, 0) if 0 < window < q.shape[1] else None
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=near, implementation="cudnn"
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _either(
    scale: float, window: int, q: jax.Array, k: jax.Array, v: jax.Array, slots: Slots, plain: jax.Array
) -> jax.Array:
    return _forward(scale, window, q, k, v, slots, plain)[0]


def _forward(scale, window, q, k, v, slots, plain):
    def flash(q, k, v, slots):
        # cuDNN's own log-sum-exp is out of reach but in the type of `q`, too coarse for a backward pass.
        out = flash_attention(q, k, v, scale=scale, window=window)
        shape = (q.shape[0], k.shape[2], q.shape[2] // k.shape[2], filled_length(q.shape[1]))
        return out, jnp.zeros(shape, jnp.float32) + 0 * q[:1, :1, :1, :1].astype(jnp.float32)

    def blocks(q, k, v, slots):
        return forward_pass(q, k, v, slots, scale=scale, window=window)

    out, log_total = jax.lax.cond(plain, flash, blocks, q, k, v, slots)
    out = checkpoint_name(out, KEPT_ATTENTION)
    log_total = checkpoint_name(log_total, KEPT_ATTENTION)
    return out, (q, k, v, slots, plain, out, log_total)


def _backward(scale, window, saved, grad):
    q, k, v, slots, plain, out, log_total = saved

    def flash(q, k, v, slots, out, log_total, grad):
        # The forward pass once more, for its log-sum-exp.
        _, back = jax.vjp(partial(flash_attention, scale=scale, window=window), q, k, v)
        return back(jnp.where((slots.until > 0)[:, :, None, None], grad, 0).astype(grad.dtype))

    def blocks(q, k, v, slots, out, log_total, grad):
        return backward_pass(q, k, v, slots, out, log_total, grad, scale=scale, window=window)

    return *jax.lax.cond(plain, flash, blocks, q, k, v, slots, out, log_total, grad), None, None


_either.defvjp(_forward, _backward)
