"""The arithmetic of one linear layer with an adapter, LoRA or DoRA, independent of any mesh.

Shapes: weight W [out, in]; A [R, in], B [out, R], magnitude m [out] (DoRA only); s is the adapter's scale.
The update is always ``(x Aᵀ) Bᵀ``; ``B A`` is formed only to merge. LoRA: arXiv:2106.09685; rank-stabilised
scale: arXiv:2312.03732; DoRA: arXiv:2402.09353.

Where a device holds only a part of a weight's *inputs* (Megatron's row-parallel layer), `base_out` and the
results here are partial sums, which the caller adds up over the devices. Only DoRA's norm is not linear in
the parts, so `sum_over_inputs` adds up its squares over these devices. A weight that is split by its outputs
needs only the matching parts of B and of the magnitude.
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
    """Compute the low-rank product x Aᵀ of a LoRA update, from x [..., in] to [..., R], in x's type."""
    return x @ pair.a.astype(x.dtype).T


def lora_update(low: jax.Array, pair: LoraWeights, scale: float | jax.Array) -> jax.Array:
    """Compute the LoRA update of a linear layer's output, s · low Bᵀ.

    Args:
        low: [..., R], x Aᵀ.
        pair: one layer's A and B.
        scale: s.

    Returns:
        The update [..., out].
    """
    # A float32 array would widen the product; a number does not.
    scale = scale.astype(low.dtype) if isinstance(scale, jax.Array) else scale
    # From the narrow side: B A as one matrix would be as large as the weight.
    return (low @ pair.b.astype(low.dtype).T) * scale


def adapted(
    base_out: jax.Array,
    low: jax.Array,
    weight: Any,
    pair: LoraWeights,
    scale: float | jax.Array,
    *,
    dense: Callable[[Any], jax.Array] = _same,
    sum_over_inputs: Callable[[jax.Array], jax.Array] = _same,
) -> jax.Array:
    """Compute the output of one linear layer with its adapter.

    LoRA gives W x + s·B A x. DoRA multiplies each row of this by m / ‖W + s·B A‖. The gradient treats the
    norm as a constant (DoRA, section 4.3), as in peft. Dropout applies to the low-rank path alone. peft's
    DoRA also applies dropout to (m/‖·‖ − 1)·W x, so the two agree exactly only without dropout.

    Args:
        base_out: [..., out], the frozen layer's output *without its bias*; the bias is added afterwards.
        low: [..., R], `low_rank` of the layer's input after dropout.
        weight: [out, in], plain or in the form that `dense` converts; read only for DoRA.
        pair: one layer's A, B and magnitude.
        scale: s.
        dense: converts a quantized weight to an array.
        sum_over_inputs: adds up values [out] over the devices that hold the weight's other inputs.

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
    scale: float | jax.Array = 1.0,
    *,
    sum_over_inputs: Callable[[jax.Array], jax.Array] = _same,
) -> jax.Array:
    """Compute the norm ‖W + s·B A‖ of each row, float32 [out], without a gradient.

    Without a pair, this is the norm of W. The square is computed as ‖W‖² + 2s·⟨W, B A⟩ + s²·‖B A‖² row by
    row. Each term comes from [out, R] products, so no array of W's size is formed except W in float32.

    Args:
        weight: W [out, in].
        pair: one layer's A and B.
        scale: s.
        sum_over_inputs: adds up values [out] over the devices that hold the weight's other inputs.
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
    """Merge adapters into one layer's weight, in the given sequence; float32 [out, in].

    Each adapter is merged into the result of the earlier ones, as in successive trainings. peft takes each
    DoRA norm from the first base instead. Both give the same result for a single DoRA adapter, or for any
    number of LoRA adapters.

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


def with_one_scale(adapter: Adapter) -> Adapter:
    """Return an adapter whose layers all have the factor `scale`: B takes up the quotients, in float32."""
    weights = dict(adapter.weights)
    for target, factors in adapter.scales:
        quotients = jnp.asarray([factor / adapter.scale for factor in factors], jnp.float32)
        pair = weights[target]
        weights[target] = dataclasses.replace(pair, b=pair.b.astype(jnp.float32) * quotients[:, None, None])
    return dataclasses.replace(adapter, weights=weights, scales=())


def merge_adapter(params: Params, adapter: Adapter) -> Params:
    """Return base weights with one adapter merged in; see `merge_adapters`."""
    return merge_adapters(params, [adapter])


def merge_adapters(params: Params, adapters: Sequence[Adapter]) -> Params:
    """Return base weights with adapters merged in, one after another in the given sequence.

    Each adapter is merged into the result of the earlier ones, with its own scale. The merge is computed in
    float32, one layer at a time, and cast once to the weight's type. The head is never changed, so tied
    weights stay tied.
    """
    changed = {}
    adapters = [with_one_scale(adapter) for adapter in adapters]
    for target in sorted({name for adapter in adapters for name in adapter.weights}):
        used = [adapter for adapter in adapters if target in adapter.weights]
        pairs = tuple(adapter.weights[target] for adapter in used)
        scales = tuple(adapter.scale for adapter in used)
        changed[target] = _merge_stacked(getattr(params.layers, target), pairs, scales)
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, **changed))


@partial(jax.jit, static_argnums=2)
def _merge_stacked(weight: jax.Array, pairs: tuple[LoraWeights, ...], scales: tuple[float, ...]) -> jax.Array:
    """Compute `merged_weight` for every layer of one target, one layer at a time."""

    def one_layer(layer: tuple[jax.Array, tuple[LoraWeights, ...]]) -> jax.Array:
        return merged_weight(layer[0], zip(layer[1], scales, strict=True)).astype(weight.dtype)

    # One layer after the other: in float32 all layers together would be twice the bfloat16 model.
    return jax.lax.map(one_layer, (weight, pairs))
