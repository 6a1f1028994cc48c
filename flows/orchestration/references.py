"""References to the current artifacts of a configuration, and the report about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.keys import identify
from flows.report.page import write_report
from flows.stages import STAGES


def report_of(config: PipelineConfig, store: Store, whole: Sequence[ArtifactRef] | None) -> Path | None:
    """Write the report of a pipeline whose artifacts all exist.

    Args:
        config: the configuration of the run.
        store: the artifact store, which also contains the report.
        whole: the artifacts of all stages; None if one artifact is missing.

    Returns:
        The report's path; None if an artifact is missing.
    """
    if whole is None:
        return None
    return write_report(store, config, whole)


def pipeline_references(
    config: PipelineConfig, store: Store, references: Sequence[ArtifactRef], before: str | None = None
) -> list[ArtifactRef] | None:
    """Add references of the stages that a run did not select.

    Args:
        config: the configuration of the run.
        store: the artifact store.
        references: references of the selected stages.
        before: name of the first stage to leave out, with those after it; None for all stages.

    Returns:
        A reference for each stage; None if a stage has no whole artifact.
    """
    known = {item.stage: item for item in references}
    whole: list[ArtifactRef] = []
    for name, identity in identify(config, STAGES).items():
        if name == before:
            break
        if name not in known:
            store.fetch(name, identity.key)
            if not store.check(name, identity.key).whole:
                return None
        # The known reference comes first, because it says whether the stage ran now, and for how long.
        whole.append(known.get(name) or verified_reference(name, identity.key, store))
    return whole


def verified_reference(stage: str, key: str, store: Store) -> ArtifactRef:
    """Return the reference of an artifact that the caller has verified.

    Args:
        stage: name of the stage.
        key: key of the artifact.
        store: the artifact store.
    """
    return ArtifactRef(
        stage=stage, key=key, path=str(store.path(stage, key)), cached=True, seconds=0.0, reason=""
    )
