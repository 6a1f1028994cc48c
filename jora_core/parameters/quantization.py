"""Quantization of frozen weights to 8 or 4 bits, stored as codes and scales.

int8 is symmetric, with one scale for each output channel. NF4 is QLoRA's format (arXiv:2305.14314): blocks of
64 along the input axis, each divided by its largest magnitude and rounded to the nearest of 16 quantiles of a
normal distribution. Both quantize each row separately, so a device can quantize its rows of a weight that is
split by outputs. Where inputs are split, int8 takes the maximum over the devices that share a row, and NF4
requires that no block is on two devices. So the codes do not depend on the mesh.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jora_core.architecture.tensor_names import PROJECTIONS
from jora_core.parameters.trees import Kind, Params, QuantizedWeight
from jora_core.specs.common import Quantization

BLOCK = 64
INT8_LARGEST = 127
# QLoRA, appendix E.
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)  # fmt: skip


def quantize(weight: jax.Array, kind: Kind, in_axis: str | None = None) -> QuantizedWeight:
    """Quantize a weight to codes and scales.

    Args:
        weight: [..., out, in].
        kind: "int8" or "nf4".
        in_axis: inside of `jax.shard_map`, the mesh axis that splits the weight's inputs; None for none.
    """
    wide = weight.astype(jnp.float32)
    if kind == "int8":
        largest = jnp.max(jnp.abs(wide), axis=-1)
        if in_axis is not None:
            largest = jax.lax.pmax(largest, in_axis)
        scale = largest / INT8_LARGEST
        codes = jnp.round(wide / _nonzero(scale)[..., None])
        return QuantizedWeight(jnp.clip(codes, -INT8_LARGEST, INT8_LARGEST).astype(jnp.int8), scale, kind)
    # Zeros at the end of a row change no block's largest magnitude, and are cut off again by `dequantize`.
    padding = -wide.shape[-1] % BLOCK
    wide = jnp.pad(wide, [(0, 0)] * (wide.ndim - 1) + [(0, padding)])
    blocks = wide.reshape(*wide.shape[:-1], -1, BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks / _nonzero(scale)[..., None]
    # The nearest value's number is how many midpoints lie below; fifteen comparisons fuse into one pass.
    middles = [(low + high) / 2 for low, high in itertools.pairwise(NF4_VALUES)]
    number = sum(((unit > middle).astype(jnp.uint8) for middle in middles), jnp.uint8(0))
    # Halves of a block share bytes, not neighbours: both halves unpack as contiguous runs, without a shuffle.
    low, high = jnp.split(number, 2, axis=-1)
    return QuantizedWeight((low | (high << 4)).reshape(*wide.shape[:-1], -1), scale, kind, padding)


def dequantize(weight: QuantizedWeight, dtype: Any) -> jax.Array:
    """Return the plain weight [..., out, in] of a quantized weight."""
    if weight.kind == "int8":
        return (weight.codes.astype(jnp.float32) * weight.scale[..., None]).astype(dtype)
    packed = weight.codes.reshape(*weight.scale.shape, BLOCK // 2)
    numbers = jnp.concatenate([packed & 15, packed >> 4], axis=-1)
    values = jnp.asarray(NF4_VALUES, jnp.float32)[numbers] * weight.scale[..., None]
    return values.astype(dtype).reshape(*values.shape[:-2], -1)[..., : weight.shape[-1]]


def dense(weight: jax.Array | QuantizedWeight) -> jax.Array:
    """Return a weight as an array. A quantized weight is dequantized to float32."""
    return dequantize(weight, jnp.float32) if isinstance(weight, QuantizedWeight) else weight


def quantization_of(params: Params) -> Quantization:
    """Return the quantization of a model's projections."""
    weight = params.layers.o_proj  # a projection that every family has
    return weight.kind if isinstance(weight, QuantizedWeight) else "none"


def quantize_params(params: Params, kind: Kind) -> Params:
    """Return a model with quantized projections. Embedding, head, norms and biases are unchanged."""
    changed = {
        # Layer by layer: quantizing needs several float32 copies of what it reads.
        name: jax.lax.map(lambda w: quantize(w, kind), weight)
        for name in PROJECTIONS
        if (weight := getattr(params.layers, name)) is not None
    }
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, **changed))


def _nonzero(scale: jax.Array) -> jax.Array:
    """Replace scales of zero by 1, so that a row or block of zeros gets the codes of zero and no NaN."""
    return jnp.where(scale > 0, scale, 1.0)
