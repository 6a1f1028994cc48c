"""What a stage is: a name, what it reads, which code it runs, and a function that fills a folder.

A stage declares everything that decides its output: settings, input files, upstream artifacts, code. All of
it goes into the stage's key (:mod:`flows.engine.keys`). What does not decide the output (paths, retries, how
often to write a checkpoint) stays out of the key, so that changing it makes no stage run again.

The engine knows no stage by name. Whoever calls it hands over a registry, `flows.stages.STAGES` outside of
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

# Names of the evaluated systems: the model as it was, after the first phase, after both.
BASE = "base"
FIRST_PHASE = "phase1"
BOTH_PHASES = "both_phases"
# Folder of a stage's work folder that a killed or stopped run goes on from.
CHECKPOINTS = "checkpoints"


# Builds the records of a corpus: settings, records folder, work folder, retries; returns the stage's metrics.
# A type of function, so that the engine needs no import from the orchestration above it.
BuildRecords = Callable[[ContextConfig, Path, Path, RetryConfig], dict[str, Any]]


@dataclass(frozen=True)
class Upstream:
    """An earlier stage's artifact, and which of its files are read (glob patterns of paths inside it).

    Only these files decide whether a finished artifact is still current: an earlier stage's log may differ.
    """

    stage: str
    reads: tuple[str, ...]


@dataclass(frozen=True)
class StageContext:
    """What a running stage gets.

    Attributes:
        config: the whole configuration.
        key: the stage's key.
        output_dir: becomes the artifact when the stage returns.
        work_dir: the same folder at every attempt with the same key (checkpoints, specs); goes after success.
        cache_dir: compiled programs, token ids and embeddings, shared by all runs.
        upstream: stage name to artifact folder.
        manifests: stage name to manifest, of the same artifacts.
        build_records: builds the records as tasks of the orchestrator; None outside of it. The stage cannot
            import the orchestrator itself, which stands in the layer above.
    """

    config: PipelineConfig
    key: str
    output_dir: Path
    work_dir: Path
    cache_dir: Path
    upstream: Mapping[str, Path]
    manifests: Mapping[str, Mapping[str, Any]]
    build_records: BuildRecords | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: of the stage, its deployment and its folder in the store (lower case, dashes).
        description: one sentence, shown with the stage's deployment.
        version: raised by hand where the same code and settings are to count as changed.
        settings: returns the part of the configuration that decides the output, without paths; it is nested
            as in the configuration.
        inputs: returns the files read outside the store, by a name that stays the same when a corpus moves.
        upstream: returns the artifacts that the stage reads.
        sources: returns the files of code by repository path.
        run: fills `output_dir` and returns metrics (JSON values).
        applies: whether a configuration has this stage.
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


Registry = Mapping[str, Stage]


def stages_of(config: PipelineConfig, registry: Registry) -> list[Stage]:
    """Return the stages that a configuration has, in the order in which they run."""
    return [stage for stage in registry.values() if stage.applies(config)]


def stage_named(name: str, config: PipelineConfig, registry: Registry) -> Stage:
    """Return the stage called `name`.

    Args:
        name: as in `--only NAME`.
        config: decides which stages there are.
        registry: name to stage, in the order in which they run.

    Raises:
        InputError: no such stage, or not in this configuration.
    """
    # Of the configuration, not of the registry: a phase that it lacks cannot run alone either.
    names = [stage.name for stage in stages_of(config, registry)]
    if name not in names:
        raise InputError(f"no stage {name} in this configuration; its stages are {', '.join(names)}")
    return registry[name]
