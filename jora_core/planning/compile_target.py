"""Compilation targets without hardware: virtual devices of this CPU, or the description of an NVIDIA card.

The targets, from the most exact to the most available:

- ``cuda``: JAX's CUDA plugin compiles for a described card without driver or device. Buffers, kernels and
  collectives are those of a real run.
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

CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")

# NVIDIA H100 SXM5 as its data sheet describes it, with the memory of the largest card planned for: the
# compiler must not start to recompute by itself to fit.
_CARD = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_HOST_OPTIONS = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion,change-op-data-type,operand_upcaster",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


@dataclass(frozen=True)
class Target:
    """A mesh to compile for, the compiler's options, and the element types that replace others."""

    kind: str
    description: str
    mesh: Mesh
    options: dict[str, Any] = field(default_factory=dict)
    stand_in: dict[str, str] = field(default_factory=dict)

    def dtype(self, name: str) -> np.dtype:
        """Return the element type to compile with in place of the type `name`."""
        return jax.numpy.dtype(self.stand_in.get(name, name))


def make_target(kind: str, data: int, tensor: int) -> Target:
    """Return the devices to compile for. Call this before anything else starts a JAX backend.

    Args:
        kind: `cuda`, `host`, `cpu`, or `auto`, which is `cuda` where its plugin is installed, else `host`.
        data: size of the mesh's data axis.
        tensor: size of the mesh's tensor axis.

    Raises:
        InputError: `kind` is `cuda` and its plugin is not installed.
    """
    plugin = next((name for name in CUDA_PLUGINS if _installed(name)), None)
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
            "cuda", "CUDA compiler, H100 (no device used)", _described_mesh(data, tensor), _cuda_options()
        )
    jax.config.update("jax_num_cpu_devices", data * tensor)
    mesh = make_mesh(data, tensor)
    if kind == "cpu":
        return Target("cpu", "this machine's CPU", mesh)
    return Target(
        "host", "CPU compiler in an accelerator's place", mesh, dict(_HOST_OPTIONS), {"bfloat16": "float16"}
    )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    # `find_spec` imports `jax_plugins`, which exists only if a plugin is installed.
    except ModuleNotFoundError:
        return False


def _described_mesh(data: int, tensor: int) -> Mesh:
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=_CARD, topology=f"1x1x{data * tensor}"
    ).devices
    grid = np.asarray(devices).reshape(data, tensor)
    return Mesh(grid, (BATCH, TENSOR), axis_types=(AxisType.Auto, AxisType.Auto))


def _cuda_options() -> dict[str, Any]:
    return {"xla_gpu_autotune_level": 0}  # there is no device to time kernels on
