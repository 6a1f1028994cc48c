"""The peak of this process's memory."""

from __future__ import annotations


def peak_memory_bytes() -> int:
    """Most memory in use so far: of the busiest device where it says so, else of this process."""
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if any(peaks):
        return max(peaks)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
