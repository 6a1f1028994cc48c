"""Choice of the attention kernel: cuDNN's flash attention, our kernel for trees, or blockwise attention.

On NVIDIA GPUs from Ampere on, packed rows and shared prefixes use the kernel for trees
(`jora_core.model.kernels.tree_attention`). cuDNN computes causal attention within one example, and takes the
rows that hold one. So its choice has two parts. The first is made at compile time from static values (device,
shapes, type, soft-cap, window). The second is made for each batch from the content of its rows. All other
devices use blockwise attention.

The padding of a row comes after its example, where causal attention does not read. So cuDNN gets no sequence
lengths and computes the padding too, because its kernels with lengths fail or give NaN at some row lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jora_core.model.attention_slots import Slots, take_slots
from jora_core.model.blockwise_attention import blockwise_attention
from jora_core.model.kernels.tree_attention import (
    MOST_WIDTH,
    Residuals,
    Scores,
    TreePlan,
    plan_trees,
    tree_attention,
    tree_backward,
    tree_forward,
)
from jora_core.model.rematerialization import KEPT_ATTENTION
from jora_core.parallel.mesh import traced_platform
from jora_core.specs.common import AttentionChoice

# cuDNN has flash attention for 16-bit types only.
TYPES = ("bfloat16", "float16")
# cuDNN's limits are wider on some devices (heads of 256 on Hopper, any length); these hold on all.
_MOST_WIDTH = 128
_LENGTH_MULTIPLE = 64
# 8.0 is Ampere (A100); older devices have no flash attention in cuDNN.
_FIRST_CAPABILITY = (8, 0)


# `trees` is for programs compiled ahead of time for a described card, for which cuDNN has no kernels.
KernelChoice = AttentionChoice | Literal["trees"]


class SelfAttention(Protocol):
    """Attention function of one layer over whole rows."""

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        layer_window: jax.Array | int,
        at: jax.Array | None = None,
    ) -> jax.Array:
        """Compute attention of q over k and v.

        Args:
            q: [B, T, N, H].
            k: [B, T, K, H].
            v: [B, T, K, H].
            layer_window: attention window of this layer in positions, 0 for none.
            at: int32 [G, M], slots as `take_slots` takes them, the only queries; None for all.

        Returns:
            [B, T, N, H] in the type of `q`, or [G, M, N, H] with `at`.
        """
        ...


def self_attention(
    slots: Slots,
    *,
    width: int,
    dtype: Any,
    scale: float,
    softcap: float | None = None,
    windows: tuple[int, ...] = (0,),
    choice: KernelChoice = "auto",
    block: int | None = None,
) -> SelfAttention:
    """Return the attention function of all layers for the rows of a batch.

    Args:
        slots: the attention mask.
        width: head width H.
        dtype: type of q, k and v.
        scale: factor of the scores.
        softcap: see `jora_core.model.blockwise_attention.blockwise_attention`.
        windows: the distinct attention windows of the layers in positions, 0 for none.
        choice: `auto` takes the kernels that the device has, `blockwise` none, `trees` the kernel for trees.
        block: slots of a block of blockwise attention; chosen by platform if None.
    """
    capability = cuda_capability() if choice == "auto" else None
    if width > MOST_WIDTH or not (choice == "trees" or (capability or (0, 0)) >= _FIRST_CAPABILITY):
        kernels = cpu_kernels(choice, softcap) if dtype == jnp.float32 else None
        compute = kernels or partial(blockwise_attention, softcap=softcap, block=block)
        return partial(_of_slots, compute=compute, slots=slots, scale=scale)
    # Once, not in every layer.
    plan = plan_trees(slots, width, dtype, windows)
    plain = None if capability is None else plain_rows(slots)
    window = windows[0] if len(windows) == 1 else None

    def attend(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        layer_window: jax.Array | int,
        at: jax.Array | None = None,
    ) -> jax.Array:
        if at is not None:
            # The kernels take whole rows.
            return take_slots(attend(q, k, v, layer_window), at)
        applies = flash_applies(
            q.shape, k.shape, q.dtype, softcap=softcap, window=window, capability=capability
        )
        if plain is None or window is None or not applies:
            return tree_attention(q, k, v, plan, scale=scale, softcap=softcap, window=layer_window)
        return _either(_Static(scale, window), q, k, v, _Rows(plan, plain))

    return attend


def cpu_kernels(choice: KernelChoice, softcap: float | None) -> Callable[..., jax.Array] | None:
    """Return attention by the kernels for a CPU, which compute in float32 alone; None where there are none.

    Args:
        choice: see `self_attention`.
        softcap: bound of the scores, None for none.
    """
    if choice != "auto" or softcap is not None or traced_platform() != "cpu" or cuda_capability() is not None:
        return None
    # Here, because numba takes half a second to import.
    from jora_core.model.kernels.cpu_attention import cpu_attention, usable

    return cpu_attention if usable() else None


def _of_slots(
    q: jax.Array, k: jax.Array, v: jax.Array, layer_window: jax.Array | int, at: jax.Array | None = None,
    *, compute: Callable[..., jax.Array], slots: Slots, scale: float,
) -> jax.Array:  # fmt: skip
    """Compute attention without a GPU's kernels; see `SelfAttention`."""
    return compute(q, k, v, slots, scale=scale, window=layer_window, at=at)


def flash_applies(
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    dtype: jnp.dtype,
    *,
    softcap: float | None,
    window: int | None,
    capability: tuple[int, int] | None,
) -> bool:
    """Return whether cuDNN supports a call, as far as that is known at compile time.

    Args:
        q_shape: shape [B, T, N, H] of q.
        k_shape: shape [B, T, K, H] of k and v.
        dtype: type of q, k and v.
        softcap: bound of the scores, None for none.
        window: attention window of all layers in positions, 0 for none; None where layers differ.
        capability: compute capability of the CUDA device, None on other platforms.
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
    """Return the compute capability of the CUDA devices, None on other platforms."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return None
    major, minor = device.compute_capability.split(".")
    return int(major), int(minor)


def plain_rows(slots: Slots) -> jax.Array:
    """Compute whether every row is one example followed only by padding; a bool scalar."""
    until, slot = slots.until, jnp.arange(slots.until.shape[1])
    # In such a row all slots of the example have the same bound, which is the first slot of the padding.
    length = until[:, :1]
    return ((until == jnp.where(slot < length, length, 0)) & ((slots.positions == slot) | (until == 0))).all()


def flash_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, window: int = 0) -> jax.Array:
    """Compute causal attention over whole rows with cuDNN.

    Args:
        q: [B, T, N, H].
        k: [B, T, K, H].
        v: [B, T, K, H].
        scale: factor of the scores.
        window: attention window in positions, 0 for none.

    Returns:
        [B, T, N, H] in the type of `q`.
    """
    # cuDNN counts the slots before a query; our window includes the query's own slot.
    near = (window - 1, 0) if 0 < window < q.shape[1] else None
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=near, implementation="cudnn"
    )


class _Static(NamedTuple):
    """Static settings of a call: factor of the scores, and the window of all layers."""

    scale: float
    window: int


class _Rows(NamedTuple):
    """The plan of a batch's rows, and whether all rows are plain (see `plain_rows`)."""

    plan: TreePlan
    plain: jax.Array


# What the backward pass needs: q, k, v, the rows, the output and the log-sum-exp of the scores.
_Saved = tuple[jax.Array, jax.Array, jax.Array, _Rows, jax.Array, jax.Array]
_Gradients = tuple[jax.Array, jax.Array, jax.Array]


# With a derivative rule of its own: differentiated automatically, `lax.cond` would keep the residuals of both
# branches for the backward pass.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _either(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, rows: _Rows) -> jax.Array:
    return _forward(static, q, k, v, rows)[0]


def _forward(
    static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, rows: _Rows
) -> tuple[jax.Array, _Saved]:
    scale, window = static

    def flash(q: jax.Array, k: jax.Array, v: jax.Array, plan: TreePlan) -> tuple[jax.Array, jax.Array]:
        # JAX gives cuDNN's log-sum-exp in the type of `q` only, too coarse for a backward pass. So zeros take
        # its place, and the backward pass runs cuDNN's forward pass once more.
        out = flash_attention(q, k, v, scale=scale, window=window)
        shape = (q.shape[0], q.shape[2], plan.slots.until.shape[1])
        return out, jnp.zeros(shape, jnp.float32) + 0 * q[:1, :1, :1, 0].astype(jnp.float32)

    out, log_total = jax.lax.cond(
        rows.plain, flash, partial(tree_forward, Scores(scale, None)), q, k, v, rows.plan
    )
    out = checkpoint_name(out, KEPT_ATTENTION)
    log_total = checkpoint_name(log_total, KEPT_ATTENTION)
    return out, (q, k, v, rows, out, log_total)


def _backward(
    static: _Static, saved: _Saved, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, rows, out, log_total = saved
    scale, window = static

    def flash(saved: Residuals, grad: jax.Array) -> _Gradients:
        q, k, v, plan, _, _ = saved
        _, back = jax.vjp(partial(flash_attention, scale=scale, window=window), q, k, v)
        # The gradient of padding is set to zero, because the output there has no meaning.
        real = plan.slots.until[:, : q.shape[1], None, None] > 0
        return back(jnp.where(real, grad, 0).astype(grad.dtype))

    trees = partial(tree_backward, Scores(scale, None))
    residuals = (q, k, v, rows.plan, out, log_total)
    return *jax.lax.cond(rows.plain, flash, trees, residuals, grad), None


_either.defvjp(_forward, _backward)
