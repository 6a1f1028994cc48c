"""Peak memory of this process's devices, and the error for a platform that JAX cannot use."""

from __future__ import annotations

import os

import jax

from jora_core.base.errors import InputError
from jora_core.base.spec_command import peak_process_bytes


def peak_memory_bytes() -> int:
    """Return the highest peak memory of a device, or this process's peak where devices do not report one.

    The CPU backend reports no peak, since its arrays are part of the process's memory.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return max(peaks, default=0) or peak_process_bytes()


def refuse_unusable_platform() -> None:
    """Name the environment variable that keeps JAX from starting, if one does.

    To be called after a failure: a check before would start JAX, which must not be before the processes of a
    run are connected.

    Raises:
        InputError: JAX has no device with this environment.
    """
    try:
        jax.devices()
    except Exception as err:  # an assertion of JAX, or a RuntimeError, by the kind of failure
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(err).split())[:200] or type(err).__name__
        if wanted:
            raise InputError(
                f"JAX_PLATFORMS={wanted}: JAX finds no such device here ({reason}); unset JAX_PLATFORMS or "
                "set it to cpu"
            ) from None
        raise InputError(
            f"JAX finds no device ({reason}); check the driver, and XLA_FLAGS, or set JAX_PLATFORMS=cpu"
        ) from None
