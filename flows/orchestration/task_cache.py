"""Prefect's task cache under the store's keys, so that the two can never disagree.

The cache entry of a stage is named by the same key as its artifact, lies in the same store, and holds a
small JSON reference. Before a stage is called its artifact is verified; where it is missing, damaged or
made from other files, Prefect is told to forget its entry and the stage runs, whatever was remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.engine.artifact_store import Store
from flows.engine.keys import Identity
from flows.engine.plan import assess

if TYPE_CHECKING:
    from prefect.cache_policies import CachePolicy
    from prefect.context import TaskRunContext


def stage_key_policy() -> CachePolicy:
    """Return the cache policy of the stage task, whose parameters include ``name`` and ``key``."""
    from prefect.cache_policies import CachePolicy

    # Prefect's default policy hashes all parameters and the task's source: the folder of the store or a
    # moved corpus would count, an artifact's damage would not.
    return CachePolicy.from_cache_key_fn(_cache_key)


def result_folder(store: Store) -> Path:
    """Return the folder of the store in which Prefect keeps the stages' references."""
    # In the store and not in Prefect's home: who copies or deletes a store copies or deletes this with
    # it.
    return store.root / ".prefect"


def why_stale(name: str, identities: Mapping[str, Identity], store: Store) -> str | None:
    """Verify a stage's artifact.

    Args:
        name: of the stage.
        identities: of the stage and of those that it reads from.
        store: where the artifacts are.

    Returns:
        Why the stage must run again; None if its artifact is current.
    """
    identity = identities[name]
    checks = {other: store.check(other, identities[other].key) for other in (*identity.upstream, name)}
    return assess(identity, checks, store)


def _cache_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    # The stage's name as well, so that a person can read the file names in the store.
    return f"{parameters['name']}-{parameters['key']}"
