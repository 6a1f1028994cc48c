"""Where every array lives: one mesh with the axes data and tensor, one table of rules.

Axis names appear in this file only. Weights follow Megatron's layout (arXiv:1909.08053): the first matrix
of each block is split by its outputs, the second by its inputs, so a block costs one all-reduce. Embedding
and head are split by vocabulary. Key/value heads fewer than the tensor axis are replicated.

Axes are Auto: the model stays free of sharding types and one source runs on one device and on many; XLA
propagates from the weights and from the few `constrain` marks. Enter the mesh with ``jax.set_mesh(mesh)``
around tracing: outside of one, `constrain` does nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jora_core.config import ModelConfig
from jora_core.errors import InputError

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


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fix the layout of an activation, one axis name or None a dimension; a no-op outside of a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    # An axis that does not divide its dimension (a batch of one at generation) is left unsplit.
    usable = [
        a if a is None or size % mesh.shape[a] == 0 else None for a, size in zip(axes, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*usable))


def kv_repeats(config: ModelConfig) -> int:
    """How often each key/value head is repeated so that every tensor shard of the current mesh has one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else max(1, mesh.shape[TENSOR] // config.num_kv_heads)


def data_shards() -> int:
    """Size of the current mesh's data axis: batches have a multiple of it as rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[BATCH]


def param_shardings(config: ModelConfig, mesh: Mesh) -> Params:
    """A `Params` tree of NamedSharding for a model of this shape."""
    from jora_core.model import LayerParams, Params

    check_mesh(config, mesh)
    layers = {name: (None, *_projection_split(config, mesh, name)) for name in PROJECTION_SPLIT}
    layers |= {"attention_norm": (None, None), "mlp_norm": (None, None)}
    vocab = TENSOR if config.vocab_size % mesh.shape[TENSOR] == 0 else None

    def place(*axes: str | None) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*axes))

    return Params(
        embedding=place(vocab, None),  # type: ignore[arg-type]
        layers=LayerParams(**{name: place(*axes) for name, axes in layers.items()}),  # type: ignore[arg-type]
        final_norm=place(None),  # type: ignore[arg-type]
        head=None if config.tie_embeddings else place(vocab, None),  # type: ignore[arg-type]
    )


def adapter_shardings(config: ModelConfig, adapter: Adapter, mesh: Mesh) -> Adapter:
    """An `Adapter` tree of NamedSharding: A split like its weight's inputs, B like its outputs, R never."""
    from jora_core.lora import LoraWeights

    weights = {}
    for name in adapter.weights:
        out_axis, in_axis = _projection_split(config, mesh, name)
        weights[name] = LoraWeights(
            a=NamedSharding(mesh, PartitionSpec(None, None, in_axis)),  # type: ignore[arg-type]
            b=NamedSharding(mesh, PartitionSpec(None, out_axis, None)),  # type: ignore[arg-type]
        )
    return dataclasses.replace(adapter, weights=weights)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Placement of [B, T] arrays: rows over the data axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Placement of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _projection_split(config: ModelConfig, mesh: Mesh, name: str) -> tuple[str | None, str | None]:
    if name in ("k_proj", "v_proj") and config.num_kv_heads % mesh.shape[TENSOR]:
        return None, None
    return PROJECTION_SPLIT[name]
