"""The artifacts that a configuration stands for now, and the report over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.keys import identify
from flows.report.page import write_report
from flows.stages import STAGES


def report_of(config: PipelineConfig, store: Store, whole: Sequence[ArtifactRef] | None) -> Path | None:
    """Write the report of a whole pipeline.

    Args:
        config: the configuration of the run.
        store: where the artifacts are and the report goes.
        whole: the artifacts of all stages; None where one of them is missing.

    Returns:
        The report's path; None where there is no whole pipeline to report.
    """
    if whole is None:
        return None
    return write_report(store, config, whole)


def pipeline_references(
    config: PipelineConfig, store: Store, references: Sequence[ArtifactRef]
) -> list[ArtifactRef] | None:
    """Add the stages outside the selection of a run to its references.

    Args:
        config: the configuration of the run.
        store: where the artifacts are.
        references: of the stages that were selected.

    Returns:
        A reference for each stage; None if one of them has no whole artifact.
    """
    known = {item.stage: item for item in references}
    whole: list[ArtifactRef] = []
    for name, identity in identify(config, STAGES).items():
        if name not in known and not store.check(name, identity.key).whole:
            return None
        # The known reference first: it says whether the stage ran in this run, and for how long.
        whole.append(known.get(name) or verified_reference(name, identity.key, store))
    return whole


def verified_reference(stage: str, key: str, store: Store) -> ArtifactRef:
    """Return the reference of an artifact that the caller has found to be whole.

    Args:
        stage: name of the stage.
        key: of the artifact.
        store: where it is.
    """
    return ArtifactRef(
        stage=stage, key=key, path=str(store.path(stage, key)), cached=True, seconds=0.0, reason=""
    )
