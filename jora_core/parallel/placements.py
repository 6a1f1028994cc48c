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
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.parallel.collectives import PROJECTION_SPLIT
from jora_core.parallel.mesh import BATCH, TENSOR, check_mesh
from jora_core.parameters.quantization import BLOCK, QUANTIZED_FIELDS
from jora_core.parameters.trees import Kind, QuantizedWeight
from jora_core.specs.common import Quantization

if TYPE_CHECKING:
    from jora_core.parameters.trees import Adapter, Params


def quantized_axes(kind: Kind, *axes: str | None) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Mesh axes of codes and of scale, given those of the weight's [..., out, in]."""
    return axes, axes[:-1] if kind == "int8" else axes


def check_quantization(config: ModelConfig, mesh: Mesh, quantization: Quantization) -> None:
    """Say whether the projections of a model of this shape can be quantised where this mesh puts them.

    Raises:
        InputError: inputs of a projection are split within a block of NF4.
    """
    from jora_core.architecture.tensor_names import projection_shape

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
    from jora_core.architecture.tensor_names import projection_shape

    found = {}
    for name in QUANTIZED_FIELDS:
        mesh = places[name].mesh
        codes, scale = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in quantized_axes(kind, *places[name].spec)
        )
        padding = -projection_shape(config, name)[1] % BLOCK if kind == "nf4" else 0
        found[name] = QuantizedWeight(codes, scale, kind, padding)  # type: ignore[arg-type]
    return found


def param_shardings(config: ModelConfig, mesh: Mesh, quantization: Quantization = "none") -> Params:
    """A `Params` tree of NamedSharding for a model of this shape."""
    from jora_core.architecture.tensor_names import layer_shapes
    from jora_core.parameters.trees import LayerParams, Params

    check_mesh(config, mesh)
    vocab = TENSOR if config.vocab_size % mesh.shape[TENSOR] == 0 else None
    layers: dict[str, Any] = {
        name: _place(mesh, None, *_split(config, mesh, name)) for name in layer_shapes(config)
    }
    if quantization != "none":
        from jora_core.parallel.placements import quantized_shardings

        layers |= quantized_shardings(config, layers, quantization)
    return Params(
        embedding=_place(mesh, vocab, None),  # type: ignore[arg-type]
        layers=LayerParams(**layers),
        final_norm=_place(mesh, None),  # type: ignore[arg-type]
        head=None if config.tie_embeddings else _place(mesh, vocab, None),  # type: ignore[arg-type]
    )


def adapter_shardings(config: ModelConfig, adapter: Adapter, mesh: Mesh) -> Adapter:
    """An `Adapter` tree of NamedSharding: A split like its weight's inputs, B like its outputs, R never."""
    from jora_core.parameters.trees import LoraWeights

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
    from jora_core.parameters.quantization import quantization_of

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
