"""The description of a stage: its name, settings, inputs, code, and the function that writes its artifact.

A stage declares its settings, input files, upstream artifacts and code, which decide its output and are in
its key (:mod:`flows.engine.keys`). Settings that do not change the output (paths, retries, how often a
checkpoint is written) are not in the key, so no stage runs again when they change.

The engine contains no name of a stage. Its callers pass a registry, which is `flows.stages.STAGES` outside of
tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.configuration.schema import PipelineConfig, RetryConfig
from jora_core.base.errors import InputError
from retrieval.settings.context import ContextConfig

# File of the adapter in the artifact of a phase, named as in PEFT.
ADAPTER = "adapter_model.safetensors"
# Folder inside a stage's work folder. A run continues from its checkpoints after a kill or a stop.
CHECKPOINTS = "checkpoints"


# Builds the records of a corpus: settings, records folder, work folder, retries; returns the stage's metrics.
# A function type, so that the engine needs no import from the orchestration layer above.
BuildRecords = Callable[[ContextConfig, Path, Path, RetryConfig], dict[str, Any]]
# Runs one stage: name, configuration, store; returns the `ArtifactRef`, of a module above this one.
ExecuteStage = Callable[[str, PipelineConfig, Any], Any]


@dataclass(frozen=True)
class Part:
    """A part of a stage's output that depends on a part of what the stage reads, as the records of a task do.

    Attributes:
        settings: the settings that decide the part, as `Stage.settings` returns them.
        inputs: names of the stage's input files that decide the part.
        sources: the source files that decide the part, by repository path.
        upstream: names of the upstream stages whose artifacts decide the part.
    """

    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    sources: Mapping[str, Path]
    upstream: tuple[str, ...] = ()


@dataclass(frozen=True)
class Upstream:
    """An upstream stage, and what a stage reads of its artifact.

    Only this decides whether a finished artifact is still current. Other files, such as the log of the
    upstream stage, may differ.

    Attributes:
        stage: name of the upstream stage.
        reads: glob patterns of files in its artifact, or of the digests of its parts (`Stage.part_digests`).
        parts: names of the parts that are read; empty for the whole artifact. With parts, the key of the
            reading stage has the keys of these parts and not the key of the artifact.
    """

    stage: str
    reads: tuple[str, ...]
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageContext:
    """The configuration, folders and upstream artifacts that a running stage receives.

    Attributes:
        config: the whole configuration.
        key: the stage's key.
        output_dir: folder that becomes the artifact when the stage returns.
        work_dir: folder for checkpoints and specs. It is the same at every attempt with the same key, and is
            removed after success.
        cache_dir: folder of compiled programs, token ids and embeddings, which all runs share.
        upstream: name of an upstream stage to the folder of its artifact.
        manifests: name of an upstream stage to the manifest of its artifact.
        build_records: function that builds the records in Prefect tasks; None outside of a flow run. The
            stage cannot import the function, because orchestration is the layer above.
        fresh: whether the run is forced, so that the stage computes again what a cache holds.
        execute: runs another stage of the same registry, with another configuration, as the pipeline does;
            the stage cannot import what itself is run by, nor the registry that it is in.
        note_read: notes the stage and key of an artifact that is read besides `upstream`. A clean-up keeps
            it, and lineage follows it. What `execute` has run is noted already.
    """

    config: PipelineConfig
    key: str
    output_dir: Path
    work_dir: Path
    cache_dir: Path
    upstream: Mapping[str, Path]
    manifests: Mapping[str, Mapping[str, Any]]
    build_records: BuildRecords | None = None
    fresh: bool = False
    execute: ExecuteStage | None = None
    note_read: Callable[[str, str], None] = lambda stage, key: None


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: name of the stage, of its deployment and of its folder in the store (lower case, dashes).
        description: one sentence, shown with the stage's deployment.
        version: number to raise by hand to make the stage run again under unchanged code and settings.
        settings: returns the part of the configuration that decides the output, without paths and nested as
            in the configuration.
        inputs: returns the input files outside the store. Their names stay the same when a corpus moves.
        upstream: returns the artifacts that the stage reads.
        sources: returns the source files by repository path.
        run: fills `output_dir` and returns metrics (JSON values).
        applies: returns whether a configuration has this stage.
        parts: returns the parts of the output by name; none by default.
        part_digests: returns digests of the content of the parts, by any name, from the stage's metrics.
    """

    name: str
    description: str
    version: int
    settings: Callable[[PipelineConfig], dict[str, Any]]
    inputs: Callable[[PipelineConfig], Mapping[str, Path]]
    upstream: Callable[[PipelineConfig], tuple[Upstream, ...]]
    sources: Callable[[], Mapping[str, Path]]
    run: Callable[[StageContext], dict[str, Any]]
    applies: Callable[[PipelineConfig], bool] = lambda config: True
    parts: Callable[[PipelineConfig], Mapping[str, Part]] = lambda config: {}
    part_digests: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda metrics: {}


Registry = Mapping[str, Stage]


def stages_of(config: PipelineConfig, registry: Registry) -> list[Stage]:
    """Return the stages that a configuration has, in the order in which they run."""
    return [stage for stage in registry.values() if stage.applies(config)]


def stage_named(name: str, config: PipelineConfig, registry: Registry) -> Stage:
    """Return the stage called `name`.

    Args:
        name: name of the stage, as in `--only NAME`.
        config: configuration that decides which stages exist.
        registry: name to stage, in the order in which they run.

    Raises:
        InputError: the configuration has no such stage.
    """
    # The stages of the configuration, not of the registry: a phase that is not configured cannot run alone.
    names = [stage.name for stage in stages_of(config, registry)]
    if name not in names:
        raise InputError(f"no stage {name} in this configuration; its stages are {', '.join(names)}")
    return registry[name]
