"""One mesh over several processes (hosts): start, synchronization, and tasks of the first process.

Every process runs the same loop over the same records and holds its part of the weights and of each batch.
The first process alone writes metrics and outputs and owns the checkpoint folder.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jora_core.base.errors import InputError
from jora_core.parallel.peer_watch import PeerWatch
from jora_core.specs.common import DistributedSpec

_VARIABLES = {
    "coordinator_address": "JORA_COORDINATOR",
    "num_processes": "JORA_NUM_PROCESSES",
    "process_id": "JORA_PROCESS_ID",
}

# Seconds without a sign of life after which JAX ends all processes, with a stack trace. `PeerWatch` needs
# half of them.
_HEARTBEAT_TIMEOUT = 60
# What the collectives' libraries and JAX's coordination service say of a peer that is gone.
_LOST = re.compile(
    r"Gloo .*failed|NCCL .*(remote|connection)|heartbeat timeout|Connection (reset|closed)", re.I
)
# Of this process, once it has joined others.
_watch: PeerWatch | None = None


def join_processes(spec: DistributedSpec | None, environment: Mapping[str, str] = os.environ) -> None:
    """Join the processes of a mesh, as set by a spec or the environment; do nothing without either.

    In a step of several Slurm tasks, Slurm's own variables are enough. This must be called before any use of
    a device, since JAX fixes its devices at the first use.

    Args:
        spec: coordinator, number of processes, and this process's number; None uses the environment.
        environment: variables, of which JORA_COORDINATOR, JORA_NUM_PROCESSES, JORA_PROCESS_ID and those of a
            Slurm step are read.

    Raises:
        InputError: some but not all variables are set, a value is wrong, or the others cannot be reached.
    """
    # The spec has priority over this process's environment, because its writer has chosen the processes.
    spec = spec or _from_environment(environment) or _from_slurm(environment)
    if spec is None or jax.distributed.is_initialized():
        return
    # Virtual and real CPU devices of several processes need a transport; accelerators bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            spec.coordinator_address,
            spec.num_processes,
            spec.process_id,
            initialization_timeout=spec.timeout_seconds,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        )
    except RuntimeError as err:
        line = " ".join(str(err).split())
        raise InputError(
            f"distributed: process {spec.process_id} of {spec.num_processes} cannot join at "
            f"{spec.coordinator_address}: {line}; start all processes, the first at that address"
        ) from None
    if spec.num_processes > 1:
        global _watch
        _watch = PeerWatch(spec, partial(_end_with_peers, spec))


def _from_environment(environment: Mapping[str, str]) -> DistributedSpec | None:
    found = {field: environment.get(name) for field, name in _VARIABLES.items()}
    # An empty variable counts as unset: scripts pass on variables that they do not have.
    if not any(found.values()):
        return None
    if missing := [_VARIABLES[field] for field, value in found.items() if not value]:
        raise InputError(f"{missing[0]} is not set; set {', '.join(_VARIABLES.values())} together, or none")
    try:
        # Through the spec, so that numbers are read and checked as in a file.
        return DistributedSpec.model_validate(found)
    except ValueError as err:
        raise InputError(f"{', '.join(_VARIABLES.values())}: {' '.join(str(err).split())}") from None


def _from_slurm(environment: Mapping[str, str]) -> DistributedSpec | None:
    """Return the place of this process among the tasks of its Slurm step; None outside of a step of several.

    JAX can read these variables itself, but then gives each process one GPU. One task per node has all GPUs.
    """
    count = int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
    if count == 1:
        return None
    # Task 0 is on the first host: node3 in `node3,node7`, `node[3,7-9]` and, with its end, `node[3-4]-ib`.
    hosts = environment["SLURM_STEP_NODELIST"]
    found = re.match(r"([^,\[]*)(?:\[([^],-]+)[^]]*\]([^,\[]*))?", hosts)
    host = "".join(part or "" for part in found.groups()) if found else hosts
    # From the job's number, so that two jobs on one host have different ports; within the last 4,096.
    port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096
    return DistributedSpec(
        coordinator_address=f"{host}:{port}",
        num_processes=count,
        process_id=int(environment["SLURM_PROCID"]),
    )


@contextmanager
def ending_with_peers() -> Iterator[None]:
    """Run the block, and end this process with one line where another process of the mesh is gone.

    The process ends at once, with status 1. An ordinary end would wait for the lost process. Where the block
    fails for another reason, the other processes are told that this one ends.
    """
    try:
        yield
    except BaseException as err:
        if _watch is not None:
            if isinstance(err, jax.errors.JaxRuntimeError) and _LOST.search(str(err)):
                _end_with_peers(_watch.place, " ".join(str(err).split()))
            _watch.leave()
        raise


def _end_with_peers(place: DistributedSpec, reason: str) -> NoReturn:
    print(
        f"error: process {place.process_id} of {place.num_processes} lost another one, which ended or "
        f"cannot be reached; start all of them again, they go on from the last checkpoint ({reason})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def is_first() -> bool:
    """Return whether this is the first process, which alone writes outputs."""
    return jax.process_index() == 0


def check_whole(mesh: Mesh) -> None:
    """Check that the mesh of several processes has all devices of all processes.

    The others would wait forever for a process without a device in the mesh, because it runs no step.

    Raises:
        InputError: the mesh has fewer devices than there are.
    """
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise InputError(
            f"mesh of {mesh.size} devices, but {jax.process_count()} processes have {jax.device_count()}; "
            "with several processes mesh.data x mesh.tensor must be all devices"
        )


def wait_for_all(where: str) -> None:
    """Wait until every process has called this function. `where` names the call in an error."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)


@contextmanager
def first_before_others(where: str) -> Iterator[None]:
    """Run the block in the first process, then in the others, which use the caches that the first filled."""
    # One barrier: the others reach it before their block, the first process after its own.
    if not is_first():
        wait_for_all(where)
    yield
    if is_first():
        wait_for_all(where)


def put(tree: Any, places: Any) -> Any:
    """Copy arrays that are equal in all processes to their placements on the mesh.

    Args:
        tree: host arrays, or arrays on this process's devices.
        places: one NamedSharding for all leaves, or a tree of NamedSharding.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, places)

    def place(value: Any, sharding: NamedSharding) -> jax.Array:
        # Unlike device_put this needs no other process, so the prefetch thread can do it during a step. A
        # collective from a thread could meet another one in the step, in a different order on each host.
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(places, NamedSharding):
        return jax.tree.map(lambda value: place(value, places), tree)
    return jax.tree.map(place, tree, places)


def whole_on_host(tree: Any) -> Any:
    """Return the tree with arrays that every process can read whole. All processes must call this."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    # tiled: the parts are joined along their own axes, and not stacked along a new one.
    return multihost_utils.process_allgather(tree, tiled=True)


def preempted(step: int) -> bool:
    """Return whether all processes stop at this step because one of them got SIGTERM.

    Every process must call this function at every step.
    """
    from jax.experimental import multihost_utils

    # All must stop at one step: a process that continues would wait forever in its next collective.
    return multihost_utils.reached_preemption_sync_point(step)
