"""The device mesh, data × tensor; the names of its axes stand here alone."""

from __future__ import annotations

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError

BATCH = "data"
TENSOR = "tensor"


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


def data_shards() -> int:
    """Size of the current mesh's data axis: batches have a multiple of it as rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[BATCH]


def current_mesh() -> Mesh:
    """The mesh that `jax.set_mesh` put in place, or one device."""
    mesh = jax.sharding.get_mesh()
    return make_mesh() if mesh.empty else mesh
