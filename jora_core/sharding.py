"""Where every array lives: one mesh with the axes data and tensor, one table of rules, and the four
collectives of a layer.

Axis names appear in this file only. Weights follow Megatron's layout (arXiv:1909.08053): the first matrix of
each block is split by its outputs, the second by its inputs; embedding and head are split by vocabulary.
Between blocks the residual stream is split by tokens (sequence parallelism, arXiv:2205.05198): a block
gathers its input over the tensor axis and scatters the sum of its output, which moves what an all-reduce
moves and keeps residuals at 1/N on each device. Key/value heads fewer than the tensor axis are replicated.

The model's code is written for one device's part and runs under `per_device`; outside of it, on one device,
the same code has whole arrays and every collective here is the identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jora_core.config import ModelConfig
from jora_core.errors import InputError
from jora_core.spec import Quantization

if TYPE_CHECKING:
    from jora_core.lora import Adapter
    from jora_core.model import Params

BATCH = "data"
TENSOR = "tensor"

# Split of each projection's [out, in]; the layer axis in front is never split.
_COLUMN = (TENSOR, None)
_ROW = (None, TENSOR)
PROJECTION_SPLIT: dict[str, tuple[str | None, str | None]] = {
    "q_proj": _COLUMN,
    "k_proj": _COLUMN,
    "v_proj": _COLUMN,
    "o_proj": _ROW,
    "gate_proj": _COLUMN,
    "up_proj": _COLUMN,
    "down_proj": _ROW,
}


def make_mesh(data: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of data × tensor devices, the first ones of this process.

    Raises:
        InputError: more devices asked for than there are.
    """
    found = jax.devices()
    if data * tensor > len(found):
        raise InputError(
            f"mesh data={data} x tensor={tensor} needs {data * tensor} devices, found {len(found)} "
            f"({found[0].platform}); lower mesh.data or mesh.tensor"
        )
    shape = (data, tensor)
    return jax.make_mesh(
        shape, (BATCH, TENSOR), axis_types=(AxisType.Auto, AxisType.Auto), devices=found[: data * tensor]
    )


def check_mesh(config: ModelConfig, mesh: Mesh | AbstractMesh) -> None:
    """Say whether a model of this shape can be split over this mesh.

    Raises:
        InputError: heads or feed-forward width do not divide by the tensor axis.
    """
    tensor = mesh.shape[TENSOR]
    for name, size in (
        ("num_attention_heads", config.num_heads),
        ("intermediate_size", config.intermediate_size),
    ):
        if size % tensor:
            raise InputError(
                f"mesh.tensor={tensor} does not divide {name}={size} of the model; choose a divisor"
            )
    if config.num_kv_heads % tensor and tensor % config.num_kv_heads:
        raise InputError(
            f"mesh.tensor={tensor} neither divides num_key_value_heads={config.num_kv_heads} "
            "nor is a multiple of it; choose another tensor axis"
        )


def per_device(
    function: Callable[..., Any], mesh: Mesh, in_places: Any, out_places: Any
) -> Callable[..., Any]:
    """`function` on each device's part of its arguments; on a mesh of one device, `function` itself.

    Args:
        in_places, out_places: trees of NamedSharding, as `param_shardings` and its kin give them, for the
            arguments (a tuple) and the result.
    """
    if mesh.size == 1:
        return function
    specs = [
        jax.tree.map(lambda place: place.spec, places, is_leaf=lambda x: isinstance(x, NamedSharding))
        for places in (in_places, out_places)
    ]
    return jax.shard_map(function, mesh=mesh, in_specs=specs[0], out_specs=specs[1])


def tensor_shards() -> int:
    """Over how many devices the weights of the code that runs are split: 1 outside of `per_device`."""
    return _shards(TENSOR)


def tensor_index() -> jax.Array | int:
    """Which of the `tensor_shards` this device holds."""
    return jax.lax.axis_index(TENSOR) if tensor_shards() > 1 else 0


def data_index() -> jax.Array | int:
    """Which part of the batch this device holds."""
    return jax.lax.axis_index(BATCH) if _shards(BATCH) > 1 else 0


def _shards(axis: str) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if not mesh.empty and axis in mesh.manual_axes else 1


def tokens_split(length: int) -> bool:
    """Whether the residual stream of rows of this length is split by tokens over the tensor axis."""
    return tensor_shards() > 1 and length % tensor_shards() == 0


def own_tokens(x: jax.Array, split: bool) -> jax.Array:
    """This device's part of the tokens of x [B, T, ...]: [B, T/N, ...]."""
    if not split:
        return x
    size = x.shape[1] // tensor_shards()
    return jax.lax.dynamic_slice_in_dim(x, tensor_index() * size, size, 1)


def gather_tokens(x: jax.Array, split: bool) -> jax.Array:
    """All tokens of the residual stream x [B, T/N, D], the input of a block's first matrix: [B, T, D]."""
    return jax.lax.all_gather(x, TENSOR, axis=1, tiled=True) if split else x


def add_up(x: jax.Array, split: bool) -> jax.Array:
    """Sum over devices of a block's output x [B, T, D], each keeping its tokens [B, T/N, D] where split."""
    if split:
        return jax.lax.psum_scatter(x, TENSOR, scatter_dimension=1, tiled=True)
    return sum_over_tensor(x)


def sum_over_tensor(x: jax.Array) -> jax.Array:
    """Sum of one value from each device of the tensor axis, on all of them."""
    return jax.lax.psum(x, TENSOR) if tensor_shards() > 1 else x


def max_over_tensor(x: jax.Array) -> jax.Array:
    """Elementwise maximum over the devices of the tensor axis, on all of them; no gradient."""
    return jax.lax.pmax(x, TENSOR) if tensor_shards() > 1 else x


def gather_vocabulary(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Logits [..., V/N] of each device's part of the vocabulary to [..., V]."""
    if logits.shape[-1] == vocab_size:
        return logits
    whole = jnp.zeros((*logits.shape[:-1], vocab_size), logits.dtype)
    start = tensor_index() * logits.shape[-1]
    # A sum of disjoint parts, unlike a gather, is known to be equal on all devices.
    return sum_over_tensor(jax.lax.dynamic_update_slice_in_dim(whole, logits, start, logits.ndim - 1))


def sum_over_batch(x: jax.Array) -> jax.Array:
    """Sum of one value from each device of the data axis, on all of them."""
    return jax.lax.psum(x, BATCH) if _shards(BATCH) > 1 else x


def data_shards() -> int:
    """Size of the current mesh's data axis: batches have a multiple of it as rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[BATCH]


def current_mesh() -> Mesh:
    """The mesh that `jax.set_mesh` put in place, or one device."""
    mesh = jax.sharding.get_mesh()
    return make_mesh() if mesh.empty else mesh


def param_shardings(config: ModelConfig, mesh: Mesh, quantization: Quantization = "none") -> Params:
    """A `Params` tree of NamedSharding for a model of this shape."""
    from jora_core.model import LayerParams, Params
    from jora_core.weights import layer_shapes

    check_mesh(config, mesh)
    vocab = TENSOR if config.vocab_size % mesh.shape[TENSOR] == 0 else None
    layers: dict[str, Any] = {
        name: _place(mesh, None, *_split(config, mesh, name)) for name in layer_shapes(config)
    }
    if quantization != "none":
        from jora_core.quant import quantized_shardings

        layers |= quantized_shardings(config, layers, quantization)
    return Params(
        embedding=_place(mesh, vocab, None),  # type: ignore[arg-type]
        layers=LayerParams(**layers),
        final_norm=_place(mesh, None),  # type: ignore[arg-type]
        head=None if config.tie_embeddings else _place(mesh, vocab, None),  # type: ignore[arg-type]
    )


def adapter_shardings(config: ModelConfig, adapter: Adapter, mesh: Mesh) -> Adapter:
    """An `Adapter` tree of NamedSharding: A split like its weight's inputs, B like its outputs, R never."""
    from jora_core.lora import LoraWeights

    weights = {}
    for name, pair in adapter.weights.items():
        out_axis, in_axis = _split(config, mesh, name)
        weights[name] = LoraWeights(
            a=_place(mesh, None, None, in_axis),  # type: ignore[arg-type]
            b=_place(mesh, None, out_axis, None),  # type: ignore[arg-type]
            magnitude=None if pair.magnitude is None else _place(mesh, None, out_axis),  # type: ignore[arg-type]
        )
    return dataclasses.replace(adapter, weights=weights)


def model_shardings(
    config: ModelConfig, params: Params, adapter: Adapter | None, mesh: Mesh
) -> tuple[Params, Adapter | None]:
    """Placement of a model's weights and of the adapter over them, if there is one."""
    from jora_core.quant import quantization_of

    placed = None if adapter is None else adapter_shardings(config, adapter, mesh)
    return param_shardings(config, mesh, quantization_of(params)), placed


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Placement of [B, T] arrays: rows over the data axis."""
    return _place(mesh, BATCH)


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Placement of keys and values [L, B, C, K, H]: rows over the data axis, heads over the tensor axis.

    Where there are fewer heads than devices, K counts a copy for each device.
    """
    return _place(mesh, None, BATCH, None, TENSOR)


def replicated(mesh: Mesh) -> NamedSharding:
    """Placement of arrays that every device holds whole."""
    return _place(mesh)


def _place(mesh: Mesh, *axes: str | None) -> NamedSharding:
    # An axis of one device is left out: what it would split is whole, and needs no sum to be known as such.
    used = (axis if axis is not None and mesh.shape[axis] > 1 else None for axis in axes)
    return NamedSharding(mesh, PartitionSpec(*used))


def _split(config: ModelConfig, mesh: Mesh, name: str) -> tuple[str | None, ...]:
    """Mesh axes of one layer's weight (or bias, or norm) of this name."""
    if name[0] in "kv" and name[1:] in ("_proj", "_bias") and config.num_kv_heads % mesh.shape[TENSOR]:
        return (None, None) if name.endswith("_proj") else (None,)
    if name.endswith("_bias"):
        return (TENSOR,)
    return PROJECTION_SPLIT.get(name, (None,))
