"""Peak memory of this process's devices."""

from __future__ import annotations

import jax

from jora_core.base.spec_command import peak_process_bytes


def peak_memory_bytes() -> int:
    """Return the highest peak memory of a device, or this process's peak where devices do not report one.

    The CPU backend reports no peak, since its arrays are part of the process's memory.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return max(peaks, default=0) or peak_process_bytes()
