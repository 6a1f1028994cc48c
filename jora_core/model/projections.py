"""The linear projection ``x Wᵀ`` with a plain or quantized weight, and its gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jora_core.parallel.collectives import as_varying
from jora_core.parallel.mesh import traced_platform
from jora_core.parameters.quantization import dequantize
from jora_core.parameters.trees import QuantizedWeight

#: Numbers of an NF4 weight that are widened at a time at most: 16 MB in bfloat16, a third of an H100's cache.
MOST_WIDENED = 1 << 23


def linear(x: jax.Array, weight: jax.Array | QuantizedWeight) -> jax.Array:
    """Compute the projection x Wᵀ, from [..., in] to [..., out]. A quantized weight gets no gradient."""
    if isinstance(weight, QuantizedWeight):
        return _quantized_linear(as_varying(x, weight.codes), weight)
    if rounds_products():
        return _narrow_linear(as_varying(x, weight), as_varying(weight, x))
    # Not ``x @ weight.T``: differentiated in a scan over layers, it would keep a transposed copy of all
    # weights.
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))


# With a derivative rule of its own: automatic differentiation would keep the dequantized weights of all
# layers for the backward pass, which quantization is meant to avoid, and `jax.checkpoint` would copy the
# codes.
@jax.custom_vjp
def _quantized_linear(x: jax.Array, weight: QuantizedWeight) -> jax.Array:
    if weight.kind == "int8":
        # 8-bit codes are exact in bfloat16, so the product needs no wider type; the scale of each output is
        # applied to the product, in float32, which is one pass over a smaller array than the weight.
        product = x @ weight.codes.astype(x.dtype).T
        return (product.astype(jnp.float32) * weight.scale).astype(x.dtype)
    return _by_slices(x, weight)


def _quantized_linear_forward(x: jax.Array, weight: QuantizedWeight) -> tuple[jax.Array, QuantizedWeight]:
    return _quantized_linear(x, weight), weight


def _quantized_linear_backward(weight: QuantizedWeight, grad: jax.Array) -> tuple[jax.Array, None]:
    if weight.kind == "int8":
        scaled = (grad.astype(jnp.float32) * weight.scale).astype(grad.dtype)
        # XLA would compute the widened codes once, for this product and for the repeated one of the forward
        # pass, and keep them in memory between. Behind a barrier each product widens what it reads.
        codes = jax.lax.optimization_barrier(weight.codes)
        return scaled @ codes.astype(grad.dtype), None
    return _gradient_by_slices(grad, weight), None


_quantized_linear.defvjp(_quantized_linear_forward, _quantized_linear_backward)


def _by_slices(x: jax.Array, weight: QuantizedWeight) -> jax.Array:
    """Compute x Wᵀ, widening a slice of the weight's outputs at a time.

    Codes that were unpacked inside of a product would be unpacked again for every block of tokens. Unpacked
    once and as a whole, they would be written to memory and read again. A slice stays in the cache between.
    """
    rows = slice_rows(*weight.shape[-2:])

    def add(number: jax.Array, product: jax.Array) -> jax.Array:
        part = x @ dequantize(_slice(weight, number * rows, rows), x.dtype).T
        return jax.lax.dynamic_update_slice_in_dim(product, part, number * rows, axis=-1)

    outputs = weight.shape[-2]
    product = as_varying(jnp.zeros((*x.shape[:-1], outputs), x.dtype), x, weight.codes)
    return jax.lax.fori_loop(0, outputs // rows, add, product)


def _gradient_by_slices(grad: jax.Array, weight: QuantizedWeight) -> jax.Array:
    """Compute grad W as `_by_slices` computes x Wᵀ, with sums in float32."""
    rows = slice_rows(*weight.shape[-2:])

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(grad, number * rows, rows, axis=-1)
        wide = dequantize(_slice(weight, number * rows, rows), grad.dtype)
        return total + jnp.matmul(part, wide, preferred_element_type=jnp.float32)

    outputs, inputs = weight.shape[-2:]
    total = as_varying(jnp.zeros((*grad.shape[:-1], inputs), jnp.float32), grad, weight.codes)
    return jax.lax.fori_loop(0, outputs // rows, add, total).astype(grad.dtype)


def slice_rows(outputs: int, inputs: int) -> int:
    """Return how many outputs of an NF4 weight are widened at a time: a divisor of all, and not all."""
    most = min(MOST_WIDENED // inputs, outputs // 2)
    return next((rows for rows in range(most, 0, -1) if outputs % rows == 0), 1)


def _slice(weight: QuantizedWeight, start: jax.Array, rows: int) -> QuantizedWeight:
    """Return some outputs of a quantized weight."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), weight)


def rounds_products() -> bool:
    """Return whether the inputs of products are rounded to bfloat16, by JAX's default of the precision."""
    return getattr(jax.config, "jax_default_matmul_precision") == "bfloat16"  # noqa: B009 - unknown to pyright


def emulated_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return a sentence where products are rounded to bfloat16 on a processor that cannot multiply it.

    Args:
        cpuinfo: Linux' description of the processor; where it is missing, nothing is known or said.
    """
    if not rounds_products() or traced_platform() != "cpu" or not cpuinfo.is_file():
        return None
    # "flags" on x86, "Features" on Arm.
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    flags = next(
        (set(text.split()) for name, _, text in lines if name.strip() in ("flags", "Features")), None
    )
    if flags is None or flags & {"amx_bf16", "avx512_bf16", "bf16"}:
        return None
    return (
        "model.matmul_precision is bfloat16, which this processor emulates (it has neither AMX nor "
        "AVX512-BF16): without the setting, training is faster"
    )


def frozen_type(dtype: Any, *, exact: bool = False) -> Any:
    """Return the type in which frozen projection weights are kept.

    Where products round their inputs, the weights are rounded once, at loading, and not again at every step.
    The results are the same bits, and the weights take half the memory.

    Args:
        dtype: the type that the weights would have otherwise.
        exact: whether something beside the products reads them, as DoRA's norm does.
    """
    return jnp.bfloat16 if rounds_products() and jnp.dtype(dtype) == jnp.float32 and not exact else dtype


# With a derivative rule of its own: automatic differentiation would multiply the float32 gradient of the
# float32 result, and so widen both products of the backward pass.
@jax.custom_vjp
def _narrow_linear(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Compute x Wᵀ of two-axis x from inputs rounded to bfloat16, with sums in float32."""
    return _narrow_product(x, weight, 1, 1)


def _narrow_linear_forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _narrow_linear(x, weight), (x, weight)


def _narrow_linear_backward(
    saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    return _narrow_product(grad, weight, 1, 0), _narrow_product(grad, x, 0, 0).astype(weight.dtype)


_narrow_linear.defvjp(_narrow_linear_forward, _narrow_linear_backward)


def _narrow_product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    # The result is asked for in float32: for a bfloat16 one, XLA's CPU compiler would first widen the inputs.
    a16, b16 = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a16, b16, axes, preferred_element_type=jnp.float32).astype(a.dtype)
