"""Specs of the commands that answer one prompt or many records (see `jora_core.specs.train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jora_core.specs.common import ModelRun, SequenceLimit, Sharing, SpecModel
from jora_core.specs.prompts.settings import PromptSettings

# Score the record's choices, generate an answer, or both.
Mode = Literal["choice", "generate", "both"]


class SamplingSpec(SpecModel):
    """Settings of the choice of the next token: the likeliest token, or a random draw."""

    # 0 by default: evaluations must not depend on a draw.
    temperature: float = Field(
        default=0.0,
        ge=0,
        title="Temperature",
        description="Scores are divided by it before a draw; 0 takes the likeliest token",
    )
    top_k: int = Field(
        default=0, ge=0, title="Top-k", description="Draw from this many likeliest tokens; 0 is all"
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        title="Top-p",
        description="Draw from the fewest likeliest tokens of this probability together; 1 is all",
    )
    # A JAX key is made from 32 bits of it.
    seed: int = Field(
        default=0, ge=0, lt=2**32, title="Seed", description="The same seed draws the same text"
    )


class AnswerLength(SpecModel):
    """Limits of the length of a generated answer."""

    max_new_tokens: int = Field(
        default=32, ge=1, title="Longest answer", description="Tokens written at most"
    )


class AnswerSpec(AnswerLength):
    """Settings of the generation of an answer: its length, its end, and the choice of tokens."""

    min_new_tokens: int = Field(
        default=0, ge=0, title="Shortest answer", description="Tokens before which no end token is written"
    )
    # An empty string would end each answer before its first character.
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], title="Stop strings", description="An answer ends before the first of these"
    )
    sampling: SamplingSpec = Field(
        default_factory=SamplingSpec,
        title="Sampling",
        description="How the next token is chosen",
    )

    @model_validator(mode="after")
    def _shortest_is_not_longest(self) -> AnswerSpec:
        # No end token is allowed before the shortest length, so each answer would end by its length alone.
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) must be at most max_new_tokens "
                f"({self.max_new_tokens})"
            )
        return self


class EvaluationSettings(AnswerLength, SequenceLimit):
    """Settings of the answers to held-out records."""

    mode: Mode = Field(
        default="choice", title="Mode", description="Choose among the valid answers, write freely, or both"
    )
    sharing: Sharing = Field(
        default="auto", title="Shared context", description="Read once what records of a context begin with"
    )
    tokens_per_batch: int = Field(
        default=8192, ge=8, title="Tokens of a batch", description="Padded tokens computed at once"
    )


class GenerateSpec(AnswerSpec, PromptSettings, SequenceLimit, ModelRun):
    """Answer one prompt with a base model and optionally an adapter."""

    adapter: Path | None = Field(
        default=None, title="Adapter", description="PEFT folder; the base alone if empty"
    )
    instruction: str = Field(title="Instruction", description="What to do")
    input: str = Field(default="", title="Input", description="What to do it with, context first")
    stream: bool = Field(
        default=True, title="Stream", description="Write a line for each piece of text as it is generated"
    )
    output_dir: Path = Field(title="Output folder", description="result.json")


class QuestionSpec(AnswerSpec, EvaluationSettings, PromptSettings, ModelRun):
    """Make prompts of held-out records for one base model."""

    records: Path = Field(title="Records", description="Parquet file of Alpaca records")
    task: str | None = Field(default=None, title="Task", description="Keep only this task; all if empty")
    # test by default: answers to training records do not show the model's quality.
    split: Literal["train", "test"] = Field(default="test", title="Split", description="Which split to read")
    max_records: int | None = Field(
        default=None, ge=1, title="Most records", description="Read at most this many"
    )


class PredictSpec(QuestionSpec):
    """Answer held-out records with one base model and any number of adapters."""

    # All systems in one command: the base is loaded once, and equal adapters share compiled programs.
    systems: dict[str, Path | None] = Field(
        min_length=1, title="Systems", description="Name to PEFT folder; null is the base model alone"
    )
    stream: bool = Field(
        default=False,
        title="Stream",
        description="Write a line of JSON for each answer when its batch ends, and draw no progress",
    )
    output_dir: Path = Field(title="Output folder", description="predictions.parquet and result.json")


class TaskFilesSpec(QuestionSpec):
    """Write held-out records with choices as a task of lm-eval."""

    # A file name and a name on a command line.
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", title="Name", description="Name of the task")
    gold: dict[str, list[int]] = Field(
        title="Right choices",
        description="Id of a record to the numbers of its right choices, from 0; other records are left out",
    )
    folder: Path = Field(title="Task folder", description="Folder of the files of the task")
    output_dir: Path = Field(title="Output folder", description="result.json")
