"""The spec of the child process that writes requests to a teacher, or questions from its answers.

It is in a module of its own, because the pipeline loads it without the libraries of the child.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from retrieval.settings.context import ContextConfig

CHILD = "flows.teachers.synthesis_child"
#: What the two processes exchange: a JSON object a line.
REQUEST_LINES, ANSWER_LINES = "requests.jsonl", "answers.jsonl"


class SynthesisSpec(BaseModel):
    """The settings, step and folders of the child process."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    step: Literal["requests", "questions"] = Field(title="Step", description="What is written")
    context: ContextConfig = Field(title="Context", description="Documents, and how questions are made")
    work_dir: Path = Field(title="Work folder", description="Chunks, requests, answers and the index")
    teacher: str = Field(default="", title="Teacher", description="Its name, for the files")
    questions_dir: Path | None = Field(
        default=None, title="Questions folder", description="Where questions are written"
    )
    output_dir: Path = Field(title="Output folder", description="result.json")
