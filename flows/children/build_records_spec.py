"""What the child of `build-context` is asked for; apart from the child, because the pipeline loads it too."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from retrieval.settings.context import ContextConfig

Step = Literal["all", "prepare", "shard", "merge"]


class BuildContextSpec(BaseModel):
    """What the child is asked to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: ContextConfig = Field(title="Context", description="Corpora, retrieval and records")
    step: Step = Field(default="all", title="Step", description="All of the build, or one step of it")
    shard: int = Field(default=0, ge=0, title="Shard", description="Number of the shard, for that step")
    work_dir: Path = Field(title="Work folder", description="What the steps share and a killed build finds")
    records_dir: Path = Field(title="Records folder", description="Records, rankings and metrics go there")
    output_dir: Path = Field(title="Output folder", description="result.json")
