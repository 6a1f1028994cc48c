"""The linear projection ``x Wᵀ`` with a plain or quantized weight, and its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jora_core.parameters.quantization import dequantize
from jora_core.parameters.trees import QuantizedWeight


def linear(x: jax.Array, weight: jax.Array | QuantizedWeight) -> jax.Array:
    """Compute the projection x Wᵀ, from [..., in] to [..., out]. A quantized weight gets no gradient."""
    if isinstance(weight, QuantizedWeight):
        # Under `jax.shard_map`, an input that is the same on all devices is marked as varying here: the
        # transpose of that cast sums its gradient over the devices, which a custom derivative must do itself.
        apart = _varying(weight.codes) - _varying(x)
        if apart:
            x = jax.lax.pcast(x, tuple(sorted(apart)), to="varying")
        return _quantized_linear(x, weight)
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
    """Return the mesh axes over which x varies under `jax.shard_map`; none elsewhere."""
    return jax.typeof(x).manual_axis_type.varying
