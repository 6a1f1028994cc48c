"""The arithmetic of one linear layer with an adapter, LoRA or DoRA; nothing here knows a mesh.

Shapes: weight W [out, in]; A [R, in], B [out, R], magnitude m [out] (DoRA only); s is the adapter's scale.
The update is always ``(x Aᵀ) Bᵀ``; ``B A`` is formed only to merge. LoRA: arXiv:2106.09685; rank-stabilised
scale: arXiv:2312.03732; DoRA: arXiv:2402.09353.

Where a device holds only a part of a weight's *inputs* (Megatron's row-parallel layer), `base_out` and the
results here are partial sums, which the caller adds up afterwards as it does for the base alone. Only DoRA's
norm is not linear in the parts: `sum_over_inputs` adds its squares up over those devices. A weight split
along its outputs needs nothing: give the matching parts of B and of the magnitude.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jora_core.parameters.trees import Adapter, LoraWeights, Params

# Rows of zeros (a padded or pruned output) have no direction: their norm is taken as this, never as zero.
_SMALLEST_SQUARE = 1e-30


def _same(value: Any) -> Any:
    return value


def low_rank(x: jax.Array, pair: LoraWeights) -> jax.Array:
    """The narrow middle of a LoRA update: x Aᵀ, x [..., in] to [..., R], in x's type."""
    return x @ pair.a.astype(x.dtype).T


def lora_update(low: jax.Array, pair: LoraWeights, scale: float) -> jax.Array:
    """What LoRA adds to a linear layer's output: s · low Bᵀ.

    Args:
        low: [..., R], x Aᵀ.
        pair: one layer's A and B.
        scale: s.

    Returns:
        [..., out].
    """
    # From the narrow side: B A as one matrix would be as large as the weight.
    return (low @ pair.b.astype(low.dtype).T) * scale


def adapted(
    base_out: jax.Array,
    low: jax.Array,
    weight: Any,
    pair: LoraWeights,
    scale: float,
    *,
    dense: Callable[[Any], jax.Array] = _same,
    sum_over_inputs: Callable[[jax.Array], jax.Array] = _same,
) -> jax.Array:
    """Output of one linear layer with its adapter: W x + s·B A x, for DoRA times m / ‖W + s·B A‖ row by row.

    The norm is a constant to the gradient (DoRA, section 4.3), as in peft. Under dropout only the low-rank
    path sees the dropped input; peft's DoRA gives the dropped input to (m/‖·‖ − 1)·W x as well, so the two
    agree exactly where the dropout is zero or off.

    Args:
        base_out: [..., out], the frozen layer's output *without its bias*; the bias is added afterwards.
        low: [..., R], `low_rank` of the adapter's input: the layer's own, after dropout.
        weight: [out, in], or what `dense` makes that of; read for DoRA alone.
        pair: one layer's A, B and magnitude.
        scale: s.
        dense: makes an array of a weight that is stored otherwise (quantized).
        sum_over_inputs: adds [out] up over the devices that hold the other inputs of this weight.

    Returns:
        [..., out] in the type of `base_out`.
    """
    out = base_out + lora_update(low, pair, scale).astype(base_out.dtype)
    if pair.magnitude is None:
        return out
    norm = row_norms(dense(weight), pair, scale, sum_over_inputs=sum_over_inputs)
    # In float32: near 1, where training starts, a narrow type has no ratio between 1 and 1.004.
    return (out * (pair.magnitude.astype(jnp.float32) / norm)).astype(out.dtype)


def row_norms(
    weight: jax.Array,
    pair: LoraWeights | None = None,
    scale: float = 1.0,
    *,
    sum_over_inputs: Callable[[jax.Array], jax.Array] = _same,
) -> jax.Array:
    """‖W + s·B A‖ of each row, float32 [out], through which no gradient flows; of W alone without a pair.

    Computed as ‖W‖² + 2s·⟨W, B A⟩ + s²·‖B A‖² row by row. Each term comes from [out, R] products, so nothing
    of W's size is formed except W in float32.

    Args:
        weight: W [out, in].
        pair: one layer's A and B.
        scale: s.
        sum_over_inputs: adds [out] over the devices that hold the other inputs of this weight.
    """
    # In float32: a bfloat16 sum over thousands of squares loses its small terms.
    wide = jax.lax.stop_gradient(weight).astype(jnp.float32)
    squares = jnp.sum(wide * wide, axis=-1)
    if pair is not None:
        a, b = (jax.lax.stop_gradient(m).astype(jnp.float32) for m in (pair.a, pair.b))
        cross = jnp.matmul(wide, a.T, precision="highest")
        inner = jnp.matmul(a, a.T, precision="highest")
        # Both terms are linear in the inputs that are summed over, so one sum over devices serves all three.
        update = 2 * scale * cross + scale**2 * jnp.matmul(b, inner, precision="highest")
        squares = squares + jnp.sum(update * b, axis=-1)
    return jnp.sqrt(jnp.maximum(sum_over_inputs(squares), _SMALLEST_SQUARE))


def merged_weight(weight: jax.Array, updates: Iterable[tuple[LoraWeights, float]]) -> jax.Array:
    """One layer's weight with adapters merged into it in order: float32 [out, in], to be cast once.

    Each adapter applies to the weight that those before it made, as in training one after the other. peft
    takes each DoRA norm from the first base instead. A single DoRA adapter, or any number of LoRA adapters,
    give the same result in both.

    Args:
        weight: [out, in].
        updates: (pair, scale) of each adapter.
    """
    merged = weight.astype(jnp.float32)
    for pair, scale in updates:
        a, b = pair.a.astype(jnp.float32), pair.b.astype(jnp.float32)
        # "highest": a GPU would else multiply in TF32, and the rounding would stay in the weights.
        merged = merged + scale * jnp.matmul(b, a, precision="highest")
        if pair.magnitude is not None:
            # `merged` holds s·B A already, so its own row norms are those that DoRA divides by.
            merged = merged * (pair.magnitude.astype(jnp.float32) / row_norms(merged))[:, None]
    return merged


def merge_adapter(params: Params, adapter: Adapter) -> Params:
    """Base weights with one adapter merged in; see `merge_adapters`."""
    return merge_adapters(params, [adapter])


def merge_adapters(params: Params, adapters: Sequence[Adapter]) -> Params:
    """Base weights with adapters merged in order, in float32 and cast once to each weight's type.

    Each adapter applies to what those before it made, with its own scale. One layer at a time is in float32.
    The head is never changed, so tied weights stay tied.
    """
    changed = {}
    for target in sorted({name for adapter in adapters for name in adapter.weights}):
        used = [adapter for adapter in adapters if target in adapter.weights]
        pairs = tuple(adapter.weights[target] for adapter in used)
        scales = tuple(adapter.scale for adapter in used)
        changed[target] = _merge_stacked(getattr(params.layers, target), pairs, scales)
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, **changed))


@partial(jax.jit, static_argnums=2)
def _merge_stacked(weight: jax.Array, pairs: tuple[LoraWeights, ...], scales: tuple[float, ...]) -> jax.Array:
    """`merged_weight` of every layer of one target, one at a time."""

    def one_layer(layer: tuple[jax.Array, tuple[LoraWeights, ...]]) -> jax.Array:
        return merged_weight(layer[0], zip(layer[1], scales, strict=True)).astype(weight.dtype)

    # One layer after the other: in float32 all layers together would be twice the bfloat16 model.
    return jax.lax.map(one_layer, (weight, pairs))
