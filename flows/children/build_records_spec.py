"""The spec of the child process of `build-context`.

It is in a module of its own, because the pipeline loads it without the libraries of the child.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from retrieval.settings.context import ContextConfig

Step = Literal["all", "prepare", "shard", "merge"]


class BuildContextSpec(BaseModel):
    """The settings, step and folders for the child process that builds records."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    context: ContextConfig = Field(title="Context", description="Corpora, retrieval and records")
    step: Step = Field(default="all", title="Step", description="All of the build, or one step of it")
    shard: int = Field(default=0, ge=0, title="Shard", description="Number of the shard, for that step")
    work_dir: Path = Field(title="Work folder", description="What the steps share and a killed build finds")
    records_dir: Path = Field(title="Records folder", description="Records, rankings and metrics go there")
    output_dir: Path = Field(title="Output folder", description="result.json")
