"""What a stage is: a name, what it reads, which code it runs, and a function that fills a folder.

Everything that decides a stage's output is declared here and goes into its key (:mod:`flows.engine.keys`):
settings, input files, upstream artifacts, code. What does not decide it (paths, retries, how often to write
a checkpoint) stays out, so that changing it runs nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.configuration.schema import PipelineConfig

# Names of the evaluated systems: the model as it was, after the first phase, after both.
BASE = "base"
FIRST_PHASE = "phase1"
BOTH_PHASES = "both_phases"
# Folder of a stage's work folder that a killed or stopped run goes on from.
CHECKPOINTS = "checkpoints"


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

    `output_dir` becomes the artifact when the stage returns; `work_dir` is the same folder at every attempt
    with the same key (checkpoints, specs) and goes away after success; `upstream` maps stage names to
    artifact folders.
    """

    config: PipelineConfig
    key: str
    output_dir: Path
    work_dir: Path
    cache_dir: Path
    upstream: Mapping[str, Path]
    manifests: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    `settings` returns the part of the configuration that decides the output, nested as in the configuration
    and without paths; `inputs` returns the files that it reads outside the store, by a name that stays the
    same when a corpus moves; `sources` returns the files of code by repository path; `run` fills
    `output_dir` and returns its metrics (JSON values).
    """

    name: str
    version: int
    settings: Callable[[PipelineConfig], dict[str, Any]]
    inputs: Callable[[PipelineConfig], Mapping[str, Path]]
    upstream: Callable[[PipelineConfig], tuple[Upstream, ...]]
    sources: Callable[[], Mapping[str, Path]]
    run: Callable[[StageContext], dict[str, Any]]
    applies: Callable[[PipelineConfig], bool] = lambda config: True
