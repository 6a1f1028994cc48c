"""The device mesh, data × tensor; the names of its axes stand here alone."""

from __future__ import annotations

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.tensor_names import model_rows, projection_row
from jora_core.base.errors import InputError

BATCH = "data"
TENSOR = "tensor"
# Widths (letters of `TensorRow.shape`) that the tensor axis splits. The model width D never is: each token's
# residual stream is whole on some device.
SPLIT_WIDTHS = frozenset({"V", "F", "NH", "KH"})


def splits_inputs(projection: str) -> bool:
    """Whether the tensor axis splits a projection's inputs (o_proj, down_proj) and not its outputs.

    Such a projection gives partial sums, which the devices add up (Megatron's row-parallel layer).
    """
    return projection_row(projection).shape[1] in SPLIT_WIDTHS


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
    """Check that a model of this shape can be split over this mesh.

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


def data_shards() -> int:
    """Size of the current mesh's data axis: the number of rows of a batch is a multiple of it."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[BATCH]


def current_mesh() -> Mesh:
    """The mesh that `jax.set_mesh` put in place, or one device."""
    mesh = jax.sharding.get_mesh()
    return make_mesh() if mesh.empty else mesh
