"""The artifacts that a configuration stands for now, and the report over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.keys import identify
from flows.engine.run_stage import ArtifactRef
from flows.stages import STAGES


def report_of(config: PipelineConfig, store: Store, whole: Sequence[ArtifactRef] | None) -> Path | None:
    """Write the report of a `whole` pipeline and return its path; no report of anything less."""
    if whole is None:
        return None
    from flows.report import write_report

    return write_report(store, config, whole)


def pipeline_references(
    config: PipelineConfig, store: Store, references: Sequence[ArtifactRef]
) -> list[ArtifactRef] | None:
    """Add the stages outside the selection to `references`; None if one of them has no whole artifact."""
    known = {item.stage: item for item in references}
    whole: list[ArtifactRef] = []
    for name, identity in identify(config, STAGES).items():
        if name not in known and not store.check(name, identity.key).whole:
            return None
        whole.append(known.get(name) or _verified(name, identity.key, store))
    return whole


def _verified(stage: str, key: str, store: Store) -> ArtifactRef:
    """Return the reference of an artifact that is there and whole."""
    return ArtifactRef(
        stage=stage, key=key, path=str(store.path(stage, key)), cached=True, seconds=0.0, reason=""
    )
