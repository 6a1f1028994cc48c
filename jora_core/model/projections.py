"""One projection ``x Wᵀ`` of a plain or quantised weight, and its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jora_core.parameters.quantization import dequantize
from jora_core.parameters.trees import QuantizedWeight


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


def _varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes over which `jax.shard_map` holds different values of x; none outside of one."""
    return jax.typeof(x).manual_axis_type.varying
