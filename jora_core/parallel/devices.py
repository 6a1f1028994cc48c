"""Peak memory of this process's devices, and the cache of compiled programs."""

from __future__ import annotations

from pathlib import Path

import jax

from jora_core.base.memory_use import peak_process_bytes


def peak_memory_bytes() -> int:
    """Return the highest peak memory of a device, or this process's peak where devices do not report one.

    The CPU backend reports no peak, since its arrays are part of the process's memory.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return max(peaks, default=0) or peak_process_bytes()


def set_compilation_cache(folder: Path | None) -> None:
    """Store compiled programs for later runs in `folder`, or in ``JAX_COMPILATION_CACHE_DIR`` if None."""
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX keeps only slow and large programs by default. A small model has many programs that compile fast,
    # and together they are most of its start-up time.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
