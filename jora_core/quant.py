"""A frozen base in 8 or 4 bits: codes and scales instead of a weight, and the product with it.

int8 is symmetric, with one scale an output channel. NF4 is QLoRA's (Dettmers et al. 2023, arXiv:2305.14314):
blocks of 64 along the input axis, each divided by its largest magnitude and rounded to the nearest of 16
quantiles of a normal distribution. Both are functions of single rows, so a weight split over devices by
outputs is quantised where it lies; split by inputs, int8 takes the maximum over the devices of a row, and NF4
asks that no block straddles two of them. So the codes do not depend on the mesh.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jora_core.config import ModelConfig
from jora_core.errors import InputError
from jora_core.sharding import param_shardings
from jora_core.spec import LORA_TARGETS, Quantization

if TYPE_CHECKING:
    from jora_core.model import Params

Kind = Literal["int8", "nf4"]

# The seven projections: what is quantised. Embedding, head, norms and biases stay as they are.
QUANTIZED_FIELDS = LORA_TARGETS
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


@flax.struct.dataclass
class QuantizedWeight:
    """A weight [..., out, in] in few bits; stands in `LayerParams` where an array would.

    Leading axes (the layers) index codes and scale alike: ``jax.tree.map(lambda x: x[i], w)`` is one layer.

    Attributes:
        codes: int8: int8 [..., out, in]. nf4: uint8 [..., out, blocks * 32], byte j of a block holds its
            element j in the low bits and element j + 32 in the high ones.
        scale: float32. int8: [..., out], a code's step. nf4: [..., out, blocks], a block's largest magnitude.
        padding: nf4: elements of the last block beyond the weight's inputs; 0 where inputs are split.
    """

    codes: jax.Array
    scale: jax.Array
    kind: Kind = flax.struct.field(pytree_node=False)
    padding: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that the codes stand for."""
        width = self.codes.shape[-1]
        return (*self.codes.shape[:-1], width if self.kind == "int8" else 2 * width - self.padding)


def quantize(weight: jax.Array, kind: Kind, in_axis: str | None = None) -> QuantizedWeight:
    """Codes and scales of a weight [..., out, in].

    Args:
        in_axis: inside of `jax.shard_map`, the mesh axis that splits the weight's inputs, if any.
    """
    wide = weight.astype(jnp.float32)
    if kind == "int8":
        largest = jnp.max(jnp.abs(wide), axis=-1)
        if in_axis is not None:
            largest = jax.lax.pmax(largest, in_axis)
        scale = largest / INT8_LARGEST
        codes = jnp.round(wide / _nonzero(scale)[..., None])
        return QuantizedWeight(jnp.clip(codes, -INT8_LARGEST, INT8_LARGEST).astype(jnp.int8), scale, kind)
    padding = -wide.shape[-1] % BLOCK
    wide = jnp.pad(wide, [(0, 0)] * (wide.ndim - 1) + [(0, padding)])
    blocks = wide.reshape(*wide.shape[:-1], -1, BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks / _nonzero(scale)[..., None]
    # The nearest value's number is how many midpoints lie below; fifteen comparisons fuse into one pass.
    middles = [(low + high) / 2 for low, high in itertools.pairwise(NF4_VALUES)]
    number = sum(((unit > middle).astype(jnp.uint8) for middle in middles), jnp.uint8(0))
    low, high = jnp.split(number, 2, axis=-1)
    return QuantizedWeight((low | (high << 4)).reshape(*wide.shape[:-1], -1), scale, kind, padding)


def dequantize(weight: QuantizedWeight, dtype: Any) -> jax.Array:
    """The weight [..., out, in] that codes and scales stand for."""
    if weight.kind == "int8":
        return (weight.codes.astype(jnp.float32) * weight.scale[..., None]).astype(dtype)
    packed = weight.codes.reshape(*weight.scale.shape, BLOCK // 2)
    numbers = jnp.concatenate([packed & 15, packed >> 4], axis=-1)
    values = jnp.asarray(NF4_VALUES, jnp.float32)[numbers] * weight.scale[..., None]
    return values.astype(dtype).reshape(*values.shape[:-2], -1)[..., : weight.shape[-1]]


def dense(weight: jax.Array | QuantizedWeight) -> jax.Array:
    """A weight as an array: itself, or the float32 values of its codes."""
    return dequantize(weight, jnp.float32) if isinstance(weight, QuantizedWeight) else weight


def linear(x: jax.Array, weight: jax.Array | QuantizedWeight) -> jax.Array:
    """x @ Wᵀ, x [..., in] to [..., out]; a quantised weight is a constant to differentiation."""
    if isinstance(weight, QuantizedWeight):
        # Under `jax.shard_map`, an input that all devices share gets its gradient's sum over them here.
        apart = _varying(weight.codes) - _varying(x)
        if apart:
            x = jax.lax.pcast(x, tuple(sorted(apart)), to="varying")
        return _quantized_linear(x, weight)
    # Not ``x @ weight.T``: differentiated in a scan over layers, that keeps a transposed copy of all weights.
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))


# Left to automatic differentiation, the widened weights of all layers would be kept for the backward pass,
# which are what quantisation is there to avoid; and `jax.checkpoint` would keep a copy of the codes.
@jax.custom_vjp
def _quantized_linear(x: jax.Array, weight: QuantizedWeight) -> jax.Array:
    if weight.kind == "int8":
        # Codes are exact in bfloat16; the scale is applied in float32, in one pass over the product.
        product = x @ weight.codes.astype(x.dtype).T
        return (product.astype(jnp.float32) * weight.scale).astype(x.dtype)
    return x @ dequantize(weight, x.dtype).T


def _quantized_linear_forward(x: jax.Array, weight: QuantizedWeight) -> tuple[jax.Array, QuantizedWeight]:
    return _quantized_linear(x, weight), weight


def _quantized_linear_backward(weight: QuantizedWeight, grad: jax.Array) -> tuple[jax.Array, None]:
    if weight.kind == "int8":
        scaled = (grad.astype(jnp.float32) * weight.scale).astype(grad.dtype)
        return scaled @ weight.codes.astype(grad.dtype), None
    return grad @ dequantize(weight, grad.dtype), None


_quantized_linear.defvjp(_quantized_linear_forward, _quantized_linear_backward)


def quantized_axes(kind: Kind, *axes: str | None) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Mesh axes of codes and of scale, given those of the weight's [..., out, in]."""
    return axes, axes[:-1] if kind == "int8" else axes


def check_quantization(config: ModelConfig, mesh: Mesh, quantization: Quantization) -> None:
    """Say whether the projections of a model of this shape can be quantised where this mesh puts them.

    Raises:
        InputError: inputs of a projection are split within a block of NF4.
    """
    from jora_core.weights import projection_shape

    if quantization != "nf4":
        return
    places = param_shardings(config, mesh)
    for name in QUANTIZED_FIELDS:
        out_width, in_width = projection_shape(config, name)
        place = getattr(places.layers, name)
        share = place.shard_shape((config.num_layers, out_width, in_width))[-1]
        if share < in_width and share % BLOCK:
            raise InputError(
                f"quantization=nf4 has blocks of {BLOCK} inputs, but {name} has {share} inputs on each of "
                f"{in_width // share} devices; lower mesh.tensor or choose int8"
            )


def quantized_shardings(
    config: ModelConfig, places: dict[str, NamedSharding], kind: Kind
) -> dict[str, QuantizedWeight]:
    """Placement of codes and scales for the projections, where `places` puts their weights."""
    from jora_core.weights import projection_shape

    found = {}
    for name in QUANTIZED_FIELDS:
        mesh = places[name].mesh
        codes, scale = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in quantized_axes(kind, *places[name].spec)
        )
        padding = -projection_shape(config, name)[1] % BLOCK if kind == "nf4" else 0
        found[name] = QuantizedWeight(codes, scale, kind, padding)  # type: ignore[arg-type]
    return found


def quantization_of(params: Params) -> Quantization:
    """How a model's projections are stored."""
    weight = params.layers.q_proj
    return weight.kind if isinstance(weight, QuantizedWeight) else "none"


def quantize_params(params: Params, kind: Kind) -> Params:
    """The same model with its projections quantised, one layer at a time."""
    changed = {
        name: jax.lax.map(lambda w: quantize(w, kind), getattr(params.layers, name))
        for name in QUANTIZED_FIELDS
    }
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, **changed))


def _nonzero(scale: jax.Array) -> jax.Array:
    """A row or block of zeros is divided by one: its codes are zero's."""
    return jnp.where(scale > 0, scale, 1.0)


def _varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes over which `jax.shard_map` holds different values of x; none outside of one."""
    return jax.typeof(x).manual_axis_type.varying
