"""Compilation targets without hardware: virtual devices of this CPU, or a described NVIDIA card or TPU slice.

The targets, from the most exact to the most available:

- ``cuda``: JAX's CUDA plugin compiles for a described card without driver or device. Buffers, kernels and
  collectives are those of a real run.
- ``tpu``: libtpu compiles for a described slice of TPUs, without a device, in the same sense.
- ``host``: the CPU compiler takes the place of an accelerator's. The CPU compiler would widen bfloat16
  products to float32, whole weights at a time, which no accelerator does. So bfloat16 is replaced by float16,
  which stays narrow. The passes that widen arrays or move code out of loops are turned off.
- ``cpu``: the CPU compiler compiles for a real run on this machine's CPU.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jora_core.base.errors import InputError
from jora_core.parallel.mesh import BATCH, TENSOR, make_mesh
from jora_core.planning.tpu_topology import EXAMPLE, Chip, described_slice

CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")

# NVIDIA's cards as their data sheets describe them, with the memory of the largest card planned for: the
# compiler must not start to recompute by itself to fit.
_CARD = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 {shared}
  threads_per_core_limit: 2048 {cores}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  {speed} device_memory_size: 150754820096
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
DESCRIBED_CARDS = {
    "h100": _CARD.format(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        cores="core_count: 132 fpus_per_core: 128",
        shared="shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448",
        speed="memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98",
    ),
    "a100": _CARD.format(
        name="NVIDIA A100-SXM4-80GB",
        major=8,
        cores="core_count: 108 fpus_per_core: 64",
        shared="shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912",
        speed="memory_bandwidth: 2039000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41",
    ),
}

CUDA_OPTIONS = {"xla_gpu_autotune_level": 0}  # there is no device to time kernels on
_HOST_OPTIONS = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion,change-op-data-type,operand_upcaster",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


@dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
        kind: `cuda`, `tpu`, `host` or `cpu`.
        description: the compiler, in words.
        mesh: described or virtual devices.
        options: the compiler's options.
        stand_in: element types that replace others.
        chip: the chip of a TPU slice; None for other targets.
    """

    kind: str
    description: str
    mesh: Mesh
    options: dict[str, Any] = field(default_factory=dict)
    stand_in: dict[str, str] = field(default_factory=dict)
    chip: Chip | None = None

    def dtype(self, name: str) -> np.dtype:
        """Return the element type to compile with in place of the type `name`."""
        return jax.numpy.dtype(self.stand_in.get(name, name))


def make_target(kind: str, data: int, tensor: int, topology: str | None = None) -> Target:
    """Return the devices to compile for. Call this before anything else starts a JAX backend.

    Args:
        kind: `cuda`, `tpu`, `host`, `cpu`, or `auto`, which is `cuda` where its plugin is installed, else
            `host`.
        data: size of the mesh's data axis.
        tensor: size of the mesh's tensor axis.
        topology: slice of TPUs for the target `tpu`, such as `v5e:2x4`.

    Raises:
        InputError: the compiler of `kind` is not installed, or the mesh does not fit the slice.
    """
    plugin = cuda_plugin()
    if kind == "auto":
        kind = "cuda" if plugin else "host"
    if kind == "cuda" and plugin is None:
        raise InputError("target cuda needs JAX's CUDA plugin; install jora-raft[gpu], or take target host")
    # Only the CPU's backend is started, because a plan must not use a card's memory.
    jax.config.update("jax_platforms", "cpu")
    # No cache of compiled programs: an executable from the cache has no memory analysis.
    jax.config.update("jax_enable_compilation_cache", False)
    if kind == "cuda":
        return Target(
            "cuda",
            "CUDA compiler, H100 (no device used)",
            described_mesh("h100", data, tensor),
            dict(CUDA_OPTIONS),
        )
    if kind == "tpu":
        topology = topology or EXAMPLE
        chip, mesh = described_slice(topology, data, tensor)
        return Target("tpu", f"TPU compiler, {topology} (no device used)", mesh, chip=chip)
    jax.config.update("jax_num_cpu_devices", data * tensor)
    mesh = make_mesh(data, tensor)
    if kind == "cpu":
        return Target("cpu", "this machine's CPU", mesh)
    return Target(
        "host", "CPU compiler in an accelerator's place", mesh, dict(_HOST_OPTIONS), {"bfloat16": "float16"}
    )


def cuda_plugin() -> str | None:
    """Return the module of JAX's CUDA plugin, None where it is not installed."""
    return next((name for name in CUDA_PLUGINS if _installed(name)), None)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    # `find_spec` imports `jax_plugins`, which exists only if a plugin is installed.
    except ModuleNotFoundError:
        return False


def described_mesh(card: str, data: int = 1, tensor: int = 1) -> Mesh:
    """Return a mesh of described cards, for programs that are compiled and never run.

    Args:
        card: a key of `DESCRIBED_CARDS`.
        data: size of the mesh's data axis.
        tensor: size of the mesh's tensor axis.
    """
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(
        platform="cuda",
        topology_name=card,
        target_config=DESCRIBED_CARDS[card],
        topology=f"1x1x{data * tensor}",
    ).devices
    grid = np.asarray(devices).reshape(data, tensor)
    return Mesh(grid, (BATCH, TENSOR), axis_types=(AxisType.Auto, AxisType.Auto))
