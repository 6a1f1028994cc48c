"""The device mesh, data × tensor, and the names of its axes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jora_core.architecture.tensor_names import projection_row
from jora_core.base.errors import InputError
from jora_core.base.notices import notice

BATCH = "data"
TENSOR = "tensor"
# Widths (letters of `TensorRow.shape`) that the tensor axis splits. The model width D never is: each token's
# residual stream is whole on some device.
SPLIT_WIDTHS = frozenset({"V", "F", "NH", "KH"})


def splits_inputs(projection: str) -> bool:
    """Return whether the tensor axis splits a projection's inputs (o_proj, down_proj) and not its outputs.

    Such a projection gives partial sums, which are added up over the devices (Megatron's row-parallel layer).
    """
    return projection_row(projection).shape[1] in SPLIT_WIDTHS


def make_mesh(data: int = 1, tensor: int = 1) -> Mesh:
    """Make a mesh of the first data × tensor devices.

    Raises:
        InputError: there are fewer devices than data × tensor, or JAX finds none.
    """
    # All devices of all processes; `check_whole` refuses a smaller mesh where there are several processes.
    found = _devices()
    if data * tensor > len(found):
        raise InputError(
            f"mesh data={data} x tensor={tensor} needs {data * tensor} devices, found {len(found)} "
            f"({found[0].platform}); lower mesh.data or mesh.tensor"
        )
    return mesh_of(found[: data * tensor], data, tensor)


def mesh_of(devices: Sequence[Any], data: int, tensor: int) -> Mesh:
    """Make a mesh of given devices, present or described.

    Args:
        devices: data × tensor devices.
        data: size of the data axis.
        tensor: size of the tensor axis.
    """
    # Auto: placements are those of `in_specs` and `device_put`. With JAX's Explicit axes the type of each
    # array would hold its placement, and the model's code would differ with and without a mesh.
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, tensor), (BATCH, TENSOR), axis_types=axes, devices=devices)


def mesh_of_one_process(data: int, tensor: int) -> Mesh:
    """Make the mesh of a command that runs in one process, whose data axis is shorter if devices are missing.

    Training may have the devices of several processes. The other commands have those of one, and the data
    axis changes only how many rows they compute at once.

    Raises:
        InputError: there are fewer devices than `tensor`, or JAX finds none.
    """
    found = len(_devices())
    fitting = max(1, min(data, found // tensor))
    if fitting < data:
        notice(f"mesh: {data} x {tensor} devices are set, this process has {found}; data={fitting} here")
    return make_mesh(fitting, tensor)


def _devices() -> list[Any]:
    """Return all devices of all processes.

    Raises:
        InputError: JAX finds none.
    """
    try:
        return jax.devices()
    # JAX has an error of its own for some platforms that are not there, and an assertion for others.
    except (RuntimeError, AssertionError) as err:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(err).split()) or "no such device"
        raise InputError(
            f"JAX finds no device with JAX_PLATFORMS={wanted or '(not set)'} ({reason:.200}); set it to cpu, "
            "or install the driver and package of that device"
        ) from None


def data_shards() -> int:
    """Return the size of the current mesh's data axis, which divides the number of rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[BATCH]


def traced_platform() -> str:
    """Return the platform that code is traced for: that of the current mesh's devices, else JAX's default.

    The two differ where a program is compiled for devices that are described only.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def current_mesh() -> Mesh:
    """Return the mesh that `jax.set_mesh` has set, or a mesh of one device."""
    mesh = jax.sharding.get_mesh()
    return make_mesh() if mesh.empty else mesh
