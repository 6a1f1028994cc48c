"""Descriptions of TPU slices, for programs that are compiled by libtpu and never run."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass

from jax.sharding import Mesh

from jora_core.base.errors import InputError
from jora_core.parallel.mesh import mesh_of

EXAMPLE = "v5e:2x4"
# Of a slice name: chip and shape, as Google names them.
_NAME = re.compile(r"(\w+):(\d+(?:x\d+){1,2})")
# What libtpu reads at its start. It would otherwise ask Google's metadata server what machine this is, and
# take a lock for which a second process, or one that trains on a real TPU, would have to wait.
_COMPILE_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Chip:
    """A kind of TPU chip.

    Attributes:
        name: as Google names it.
        gib: high-bandwidth memory, by https://cloud.google.com/tpu/docs/v5e (also v5p and v6e).
        usable: bytes of that memory that a program may use, as libtpu 0.0.42 says where one needs more.
        axes: axes of a slice's shape.
    """

    name: str
    gib: int
    usable: int
    axes: int


CHIPS = {
    "v5e": Chip("TPU v5e", 16, int(15.75 * 2**30), 2),
    "v6e": Chip("TPU v6e", 32, int(31.25 * 2**30), 2),
    "v5p": Chip("TPU v5p", 95, int(95.74 * 2**30), 3),
}
_EXPECTED = f"expected a chip of {', '.join(CHIPS)} and the shape of its slice, as {EXAMPLE} or v5p:2x2x1"


def libtpu_installed() -> bool:
    """Return whether libtpu, the compiler for TPUs, is installed."""
    return importlib.util.find_spec("libtpu") is not None


def described_slice(topology: str, data: int, tensor: int) -> tuple[Chip, Mesh]:
    """Return the chip of a described slice, and a mesh of all its devices.

    Args:
        topology: chip and shape of the slice, such as `v5e:2x4`.
        data: size of the mesh's data axis.
        tensor: size of the mesh's tensor axis.

    Raises:
        InputError: libtpu is not installed, there is no such slice, or the mesh has not its devices.
    """
    found = _NAME.fullmatch(topology)
    chip = CHIPS.get(found[1]) if found else None
    shape = [int(size) for size in found[2].split("x")] if found else []
    if chip is None or len(shape) != chip.axes:
        raise InputError(f"topology {topology}: {_EXPECTED}")
    if not libtpu_installed():
        raise InputError(
            "target tpu needs libtpu; install jora-raft[tpu] (no TPU needed), or take target host"
        )
    from jax.experimental import topologies

    for name, value in _COMPILE_ONLY.items():
        os.environ.setdefault(name, value)
    # A host has 2 x 2 chips, and fewer in a slice that has not as many.
    host = [2 if size % 2 == 0 else 1 for size in shape[:2]] + [1]
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, chips_per_host_bounds=host
        ).devices
    except RuntimeError as err:
        reason = " ".join(str(err).split())
        raise InputError(f"topology {topology}: {_EXPECTED}; libtpu says: {reason:.300}") from None
    if data * tensor != len(devices):
        raise InputError(
            f"topology {topology} has {len(devices)} devices, the mesh data={data} x tensor={tensor} has "
            f"{data * tensor}; choose data and tensor whose product is {len(devices)}, or another topology"
        )
    return chip, mesh_of(devices, data, tensor)
