"""What devices exchange inside a step: gathers and sums over the mesh's axes."""

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
    """`function` on each device's part of its arguments; on a mesh of one device, `function` itself.

    Args:
        function: written for one device's part; it may use the collectives of this module.
        mesh: data × tensor.
        in_places: trees of NamedSharding for the arguments (a tuple), as `param_shardings` and similar
            functions return them.
        out_places: the same for the result.
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
    """The number of devices that split each weight: 1 outside of `per_device`."""
    return _shards(TENSOR)


def tensor_index() -> jax.Array | int:
    """This device's number among the `tensor_shards`."""
    return jax.lax.axis_index(TENSOR) if tensor_shards() > 1 else 0


def data_index() -> jax.Array | int:
    """This device's number among those that split the batch."""
    return jax.lax.axis_index(BATCH) if _shards(BATCH) > 1 else 0


def _shards(axis: str) -> int:
    # Read from the trace, not from an argument: the model's code is the same with and without a mesh.
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if not mesh.empty and axis in mesh.manual_axes else 1


def tokens_split(length: int) -> bool:
    """Whether the residual stream of rows of this length is split by tokens over the tensor axis.

    Rows of another length (a decoding step has one token) stay whole on each device.
    """
    return tensor_shards() > 1 and length % tensor_shards() == 0


def own_tokens(x: jax.Array, split: bool) -> jax.Array:
    """This device's part of the tokens of x [B, T, ...]: [B, T/N, ...]."""
    if not split:
        return x
    size = x.shape[1] // tensor_shards()
    return jax.lax.dynamic_slice_in_dim(x, tensor_index() * size, size, 1)


def gather_tokens(x: jax.Array, split: bool) -> jax.Array:
    """All tokens [B, T, D] of a residual stream x [B, T/N, D], for a block's first matrix."""
    return jax.lax.all_gather(x, TENSOR, axis=1, tiled=True) if split else x


def add_up(x: jax.Array, split: bool) -> jax.Array:
    """Sum over devices of a block's output x [B, T, D]; where split, each keeps its tokens [B, T/N, D]."""
    if split:
        return jax.lax.psum_scatter(x, TENSOR, scatter_dimension=1, tiled=True)
    return sum_over_tensor(x)


def sum_over_tensor(x: jax.Array) -> jax.Array:
    """Sum of one value from each device of the tensor axis, on all of them."""
    return jax.lax.psum(x, TENSOR) if tensor_shards() > 1 else x


def max_over_tensor(x: jax.Array) -> jax.Array:
    """Elementwise maximum over the devices of the tensor axis, on all of them; it has no gradient."""
    return jax.lax.pmax(x, TENSOR) if tensor_shards() > 1 else x


def gather_vocabulary(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Logits [..., V/N] of each device's part of the vocabulary to [..., V]."""
    if logits.shape[-1] == vocab_size:
        return logits
    whole = jnp.zeros((*logits.shape[:-1], vocab_size), logits.dtype)
    start = tensor_index() * logits.shape[-1]
    # `shard_map` knows that a sum is equal on all devices, and does not know it of a gather. So the parts are
    # added into zeros, although a gather would move half of the bytes.
    return sum_over_tensor(jax.lax.dynamic_update_slice_in_dim(whole, logits, start, logits.ndim - 1))


def sum_over_batch(x: jax.Array) -> jax.Array:
    """Sum of one value from each device of the data axis, on all of them."""
    return jax.lax.psum(x, BATCH) if _shards(BATCH) > 1 else x
