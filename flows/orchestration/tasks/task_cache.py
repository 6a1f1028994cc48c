"""Prefect's task cache under the keys of the artifact store, so that cache and store always agree.

The cache entry of a stage has the same key as its artifact, is in the same store, and contains a small JSON
reference. Before the call of a stage its artifact is verified. If the artifact is missing, damaged or made
from other files, Prefect ignores its cache entry and the stage runs.
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
    # In the store, not in Prefect's home, so that a copied or deleted store includes these references.
    return store.root / ".prefect"


def why_stale(name: str, identities: Mapping[str, Identity], store: Store) -> str | None:
    """Verify the artifact of a stage, and say why the stage must run again.

    Args:
        name: name of the stage.
        identities: stage name to the parts of its key, for the stage and its upstream stages.
        store: the artifact store.

    Returns:
        The reason; None if the artifact is current.
    """
    identity = identities[name]
    checks = {other: store.check(other, identities[other].key) for other in (*identity.upstream, name)}
    return assess(identity, checks, store)


def _cache_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    # The name of the stage makes the file names in the store readable.
    return f"{parameters['name']}-{parameters['key']}"
