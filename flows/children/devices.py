"""The devices that JAX finds, asked in a child process.

The process is a child of its own, because an opened device stays reserved until the process ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from flows.children.launcher import launcher_variable
from jora_core.base.errors import InputError

DEVICE_SECONDS = 120
_CODE = """
import json, jax
print(json.dumps({"backend": jax.default_backend(), "devices": [str(d.device_kind) for d in jax.devices()]}))
"""


@dataclass(frozen=True)
class Devices:
    """The backend of JAX, such as `cpu` or `gpu`, and the kind of each of its devices."""

    backend: str
    kinds: tuple[str, ...]


def find_devices() -> Devices:
    """Return the devices that a training process would find.

    Raises:
        InputError: JAX does not start. The message has its reason and names the variable to change.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CODE],
            capture_output=True,
            text=True,
            timeout=DEVICE_SECONDS,
            check=False,
        )
        # The last line, because drivers and plugins print lines of their own before it.
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, OSError):
        raise InputError(
            f"JAX did not start within {DEVICE_SECONDS} s; end other programs that use the devices"
        ) from None
    except (ValueError, IndexError):
        # Of a traceback the last line is the reason.
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise InputError(f"JAX does not start: {last[0]}{_variables()}") from None
    return Devices(found["backend"], tuple(found["devices"]))


def require_devices(wanted: int) -> None:
    """Check that a mesh has as many devices as it needs.

    Raises:
        InputError: there are fewer devices, or JAX does not start.
    """
    # One device is always there, and the start of JAX takes seconds. A launcher starts training on another
    # machine, whose devices nobody can see from here.
    if wanted == 1 or launcher_variable("train"):
        return
    found = find_devices()
    if wanted > len(found.kinds):
        raise InputError(
            f"mesh: data x tensor needs {wanted} devices, found {len(found.kinds)} ({found.backend}); lower "
            "mesh.data or mesh.tensor"
        )


def _variables() -> str:
    """Name the environment variables that choose JAX's backend, if they are set."""
    names = [name for name in ("JAX_PLATFORMS", "XLA_FLAGS") if os.environ.get(name)]
    said = " and ".join(f"{name}={os.environ[name]}" for name in names)
    return f"; the environment has {said}: correct or unset it" if said else ""
