"""Placements (shardings) of all arrays on the mesh, data × tensor.

A weight's placement is derived from its row in the table `TENSORS`: the widths in `SPLIT_WIDTHS` are split
over the tensor axis, and all others are whole on each device. This is Megatron's layout (arXiv:1909.08053):
the first matrix of each block is split by its outputs, the second by its inputs, embedding and head by
vocabulary. Between blocks the residual stream is split by tokens (sequence parallelism, arXiv:2205.05198). A
block gathers its input over the tensor axis and scatters the sum of its output. This moves as many bytes as
one all-reduce, and each device keeps 1/N of the residuals. Where there are fewer key/value heads than devices
on the tensor axis, each device holds all key/value heads.

The model's code computes one device's part and runs under `per_device`. On one device the same code works on
whole arrays, and every collective is the identity.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_projections, model_rows, projection_shape
from jora_core.architecture.tensor_names import TensorRow, projection_row
from jora_core.base.errors import InputError
from jora_core.parallel.mesh import BATCH, SPLIT_WIDTHS, TENSOR
from jora_core.parameters.quantization import BLOCK, quantization_of
from jora_core.parameters.trees import Adapter, Kind, LayerParams, LoraWeights, Params, QuantizedWeight
from jora_core.specs.common import Quantization


def quantized_axes(kind: Kind, *axes: str | None) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Return the mesh axes of a quantized weight's codes and scale, from the axes of the plain weight."""
    return axes, axes[:-1] if kind == "int8" else axes


def check_mesh(config: ModelConfig, mesh: Mesh | AbstractMesh) -> None:
    """Check that a model can be split over a mesh.

    Raises:
        InputError: heads or feed-forward width do not divide by the tensor axis, or a projection is fused.
    """
    tensor = mesh.shape[TENSOR]
    fused = next((row.field for row in model_rows(config) if row.is_fused), None)
    if tensor > 1 and fused:
        # An equal cut of the fused rows gives no device its own share of q, k and v.
        raise InputError(
            f"mesh.tensor={tensor} cannot split the fused {fused} of {config.family} models; "
            "set mesh.tensor to 1 and use mesh.data"
        )
    for name, size in (
        ("num_attention_heads", config.num_heads),
        ("intermediate_size", config.intermediate_size),
    ):
        if size % tensor:
            raise InputError(
                f"mesh.tensor={tensor} does not divide {name}={size} of the model; choose a divisor"
            )
    # Fewer key/value heads than devices: each device holds all of them and uses the one of its query heads.
    # For that all query heads of a device must share one key/value head.
    if config.num_kv_heads % tensor and tensor % config.num_kv_heads:
        raise InputError(
            f"mesh.tensor={tensor} neither divides num_key_value_heads={config.num_kv_heads} "
            "nor is a multiple of it; choose another tensor axis"
        )


def check_quantization(config: ModelConfig, mesh: Mesh, quantization: Quantization) -> None:
    """Check that a model's projections can be quantized on a mesh.

    Args:
        config: the model's.
        mesh: data × tensor.
        quantization: quantization of the projections. Only NF4 has blocks, which a mesh could divide.

    Raises:
        InputError: the mesh splits the inputs of a projection within a block of NF4.
    """
    # int8 has one scale a row, and the largest magnitude of a split row is found over its devices.
    if quantization != "nf4":
        return
    places = param_shardings(config, mesh)
    for name in model_projections(config):
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
    """Return the placements of the projections' codes and scales, from those of the plain weights.

    Args:
        config: the model's.
        places: placement of each projection's plain weight [L, out, in], by field.
        kind: "int8" or "nf4".
    """
    found = {}
    for name in model_projections(config):
        mesh = places[name].mesh
        codes, scale = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in quantized_axes(kind, *places[name].spec)
        )
        # Not an array but part of the tree's structure, which must be that of the quantized weights.
        padding = -projection_shape(config, name)[1] % BLOCK if kind == "nf4" else 0
        found[name] = QuantizedWeight(codes, scale, kind, padding)  # type: ignore[arg-type]
    return found


def param_shardings(config: ModelConfig, mesh: Mesh, quantization: Quantization = "none") -> Params:
    """Return the placements of a model's weights, a `Params` tree of NamedSharding.

    Args:
        config: the model's.
        mesh: data × tensor.
        quantization: quantization of the projections; their codes and scales have separate placements.

    Raises:
        InputError: the mesh cannot split the model.
    """
    check_mesh(config, mesh)
    layers: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for row in model_rows(config):
        axes = _split(config, mesh, row)
        if row.per_layer:
            layers[row.field] = _place(mesh, None, *axes)  # the layer axis in front is never split
        else:
            rest[row.field] = _place(mesh, *axes)
    if quantization != "none":
        layers |= quantized_shardings(config, layers, quantization)
    return Params(layers=LayerParams(**layers), **rest)


def adapter_shardings(config: ModelConfig, adapter: Adapter, mesh: Mesh) -> Adapter:
    """Return the placements of an adapter, an `Adapter` tree of NamedSharding.

    A is split like the weight's inputs and B like its outputs. The rank axis R is never split.

    Args:
        config: the base model's.
        adapter: the adapter, as arrays or shapes.
        mesh: data × tensor.
    """
    weights = {}
    for name, pair in adapter.weights.items():
        # The rank is far narrower than the other axes: splitting it would save little and need one more sum.
        out_axis, in_axis = _split(config, mesh, projection_row(name))
        weights[name] = LoraWeights(
            a=_place(mesh, None, None, in_axis),  # type: ignore[arg-type]
            b=_place(mesh, None, out_axis, None),  # type: ignore[arg-type]
            magnitude=None if pair.magnitude is None else _place(mesh, None, out_axis),  # type: ignore[arg-type]
        )
    return dataclasses.replace(adapter, weights=weights)


def model_shardings(
    config: ModelConfig, params: Params, adapter: Adapter | None, mesh: Mesh
) -> tuple[Params, Adapter | None]:
    """Return the placements of a model's weights and of its adapter. The latter is None without an adapter.

    Args:
        config: the model's.
        params: the weights, which show the quantization of the projections.
        adapter: the adapter, None for the base model.
        mesh: data × tensor.
    """
    placed = None if adapter is None else adapter_shardings(config, adapter, mesh)
    return param_shardings(config, mesh, quantization_of(params)), placed


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the placement of [B, T] arrays: rows over the data axis."""
    return _place(mesh, BATCH)


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Return the placement of the key/value cache's arrays [L, B, C, K, H].

    Rows are split over the data axis, heads over the tensor axis. Where there are fewer heads than devices, K
    is the number of devices, and each device holds the head that it uses.
    """
    return _place(mesh, None, BATCH, None, TENSOR)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the placement of arrays that every device holds whole."""
    return _place(mesh)


def _place(mesh: Mesh, *axes: str | None) -> NamedSharding:
    # An axis of one device is left out. Named, it would make `shard_map` treat the array as different on each
    # device of that axis, and ask for a sum before a result may be called equal.
    used = (axis if axis is not None and mesh.shape[axis] > 1 else None for axis in axes)
    return NamedSharding(mesh, PartitionSpec(*used))


def _split(config: ModelConfig, mesh: Mesh, row: TensorRow) -> tuple[str | None, ...]:
    """Return the mesh axis of each dimension of a tensor, without the layer axis."""
    tensor = mesh.shape[TENSOR]
    # Heads are the unit of the split, not their elements. Other widths that do not divide are refused before.
    counts = {"V": config.vocab_size, "KH": config.num_kv_heads}
    return tuple(
        TENSOR if width in SPLIT_WIDTHS and counts.get(width, 0) % tensor == 0 else None
        for width in row.shape
    )
