"""The number of processor cores."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of cores that this process may use, which a container or `taskset` may limit."""
    # `os.cpu_count` counts the machine's cores, also in a container that may use two of them.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
