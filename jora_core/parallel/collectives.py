"""Collectives inside a step: gathers and sums over the mesh's axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jora_core.parallel.mesh import BATCH, TENSOR


def per_device(
    function: Callable[..., Any], mesh: Mesh, in_places: Any, out_places: Any
) -> Callable[..., Any]:
    """Return a function that runs `function` on each device with the device's part of the arguments.

    On a mesh of one device this is `function` itself.

    Args:
        function: computes one device's part; may use the collectives of this module.
        mesh: data × tensor.
        in_places: tuple of trees of NamedSharding for the arguments, as returned by `param_shardings` and
            similar functions.
        out_places: tree of NamedSharding for the result.
    """
    # Without `shard_map` no axis is manual, so `tensor_shards` is 1 and every collective is the identity. The
    # compiled program is then that of a plain function.
    if mesh.size == 1:
        return function
    specs = [
        jax.tree.map(lambda place: place.spec, places, is_leaf=lambda x: isinstance(x, NamedSharding))
        for places in (in_places, out_places)
    ]
    return jax.shard_map(function, mesh=mesh, in_specs=specs[0], out_specs=specs[1])


def tensor_shards() -> int:
    """Return the number of devices that split each weight; 1 outside of `per_device`."""
    return _shards(TENSOR)


def tensor_index() -> jax.Array | int:
    """Return this device's number on the tensor axis."""
    return jax.lax.axis_index(TENSOR) if tensor_shards() > 1 else 0


def data_index() -> jax.Array | int:
    """Return this device's number on the data axis."""
    return jax.lax.axis_index(BATCH) if _shards(BATCH) > 1 else 0


def _shards(axis: str) -> int:
    # Read from the trace, not from an argument: the model's code is the same with and without a mesh.
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if not mesh.empty and axis in mesh.manual_axes else 1


def tokens_split(length: int) -> bool:
    """Return whether rows of `length` tokens are split by tokens over the tensor axis.

    Other rows stay whole on each device, such as the rows of one token in a decoding step.
    """
    return tensor_shards() > 1 and length % tensor_shards() == 0


def own_tokens(x: jax.Array, split: bool) -> jax.Array:
    """Return this device's tokens [B, T/N, ...] of x [B, T, ...], or x itself where not `split`."""
    if not split:
        return x
    size = x.shape[1] // tensor_shards()
    return jax.lax.dynamic_slice_in_dim(x, tensor_index() * size, size, 1)


def gather_tokens(x: jax.Array, split: bool) -> jax.Array:
    """Gather all tokens [B, T, D] of a residual stream x [B, T/N, D], for a block's first matrix."""
    return jax.lax.all_gather(x, TENSOR, axis=1, tiled=True) if split else x


def add_up(x: jax.Array, split: bool) -> jax.Array:
    """Sum a block's output x [B, T, D] over devices; if `split`, return this device's tokens [B, T/N, D]."""
    if split:
        return jax.lax.psum_scatter(x, TENSOR, scatter_dimension=1, tiled=True)
    return sum_over_tensor(x)


def sum_over_tensor(x: jax.Array) -> jax.Array:
    """Sum x over the devices of the tensor axis. All of them get the sum."""
    return jax.lax.psum(x, TENSOR) if tensor_shards() > 1 else x


def max_over_tensor(x: jax.Array) -> jax.Array:
    """Compute the elementwise maximum over the devices of the tensor axis. The result has no gradient."""
    return jax.lax.pmax(x, TENSOR) if tensor_shards() > 1 else x


def gather_vocabulary(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Gather the logits [..., V/N] of each device's part of the vocabulary into [..., V]."""
    if logits.shape[-1] == vocab_size:
        return logits
    whole = jnp.zeros((*logits.shape[:-1], vocab_size), logits.dtype)
    start = tensor_index() * logits.shape[-1]
    # `shard_map` marks the result of a sum as equal on all devices, but not the result of a gather. So the
    # parts are added into zeros, although a gather would move half of the bytes.
    return sum_over_tensor(jax.lax.dynamic_update_slice_in_dim(whole, logits, start, logits.ndim - 1))


def sum_over_batch(x: jax.Array) -> jax.Array:
    """Sum x over the devices of the data axis. All of them get the sum."""
    return jax.lax.psum(x, BATCH) if _shards(BATCH) > 1 else x


def as_varying(x: jax.Array, *like: jax.Array) -> jax.Array:
    """Return x, marked as varying over the mesh axes of other arrays under `jax.shard_map`.

    The transpose of that cast sums the gradient over the devices, which a custom derivative must do itself.
    """
    apart = varying_axes(*like) - varying_axes(x)
    return jax.lax.pcast(x, tuple(sorted(apart)), to="varying") if apart else x


def varying_axes(*arrays: jax.Array) -> frozenset[str]:
    """Return the mesh axes over which any of the arrays varies under `jax.shard_map`; none elsewhere."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))
