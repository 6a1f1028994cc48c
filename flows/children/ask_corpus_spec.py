"""The spec of the child process that makes the prompts of questions."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from retrieval.settings.context import ContextConfig


class AskSpec(BaseModel):
    """The questions, the settings of their corpus, and the folders of the child process."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    context: ContextConfig = Field(title="Context", description="Corpora, retrieval and records")
    task: str = Field(title="Task", description="The task that is asked")
    texts: list[str] = Field(min_length=1, title="Questions", description="Or new posts of a thread")
    about: str = Field(default="", title="About", description="Id of the thread or table")
    author: str = Field(default="Guest", title="Author", description="Of new posts")
    top: int | None = Field(
        default=None, ge=1, title="Texts", description="In a prompt; empty: as in training"
    )
    work_dir: Path = Field(title="Work folder", description="The prepared corpora, which are kept")
    records: Path = Field(title="Records", description="Parquet file to write, for the training core")
    output_dir: Path = Field(title="Output folder", description="result.json")
