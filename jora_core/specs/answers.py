"""What is asked of the commands that answer: one prompt, or records (see `jora_core.specs.train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jora_core.specs.common import ALPACA_SHORT, AttentionChoice, Dtype, MeshSpec, Quantization, SpecModel


class SamplingSpec(SpecModel):
    """How the next token is chosen: the likeliest, or drawn."""

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
    seed: int = Field(
        default=0, ge=0, lt=2**32, title="Seed", description="The same seed draws the same text"
    )


class AnswerSpec(SpecModel):
    """How an answer is written, and when it ends."""

    max_new_tokens: int = Field(
        default=32, ge=1, title="Longest answer", description="Tokens generated at most"
    )
    min_new_tokens: int = Field(
        default=0, ge=0, title="Shortest answer", description="Tokens before which no end token is written"
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], title="Stop strings", description="An answer ends before the first of these"
    )
    sampling: SamplingSpec = Field(
        default_factory=SamplingSpec,  # type: ignore[arg-type]
        title="Sampling",
        description="How the next token is chosen",
    )

    @model_validator(mode="after")
    def _shortest_is_not_longest(self) -> AnswerSpec:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) must be at most max_new_tokens "
                f"({self.max_new_tokens})"
            )
        return self


class GenerateSpec(AnswerSpec):
    """Answer one prompt with a base model, or an adapter over it."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    adapter: Path | None = Field(
        default=None, title="Adapter", description="PEFT folder; else the base alone"
    )
    instruction: str = Field(title="Instruction", description="What to do")
    input: str = Field(default="", title="Input", description="What to do it with, context first")
    prompt_template: str = Field(
        default=ALPACA_SHORT, title="Prompt", description="Format string with {instruction} and {input}"
    )
    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens, prompt and answer"
    )
    stream: bool = Field(
        default=True, title="Stream", description="Write a line for each piece of text as it comes"
    )
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices")  # type: ignore[arg-type]
    dtype: Dtype = Field(default="float32", title="Base dtype", description="Type of the base weights")
    quantization: Quantization = Field(
        default="none",
        title="Quantization",
        description="Of the projections: int8 (a scale an output channel) or nf4 (4 bits, blocks of 64)",
    )
    attention: AttentionChoice = Field(
        default="auto",
        title="Attention",
        description="auto: cuDNN's where it applies (NVIDIA, bfloat16, rows of one example), else our own in "
        "blocks; blockwise: always our own",
    )
    output_dir: Path = Field(title="Output folder", description="result.json")
    compilation_cache_dir: Path | None = Field(
        default=None, title="Compilation cache", description="Folder, optional"
    )


class PredictSpec(AnswerSpec):
    """Answer held-out records with one base model and any number of adapters over it."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    systems: dict[str, Path | None] = Field(
        min_length=1, title="Systems", description="Name to PEFT folder; null is the base model alone"
    )
    records: Path = Field(title="Records", description="Parquet file of Alpaca records")
    task: str | None = Field(default=None, title="Task", description="Keep only this task; all if empty")
    split: Literal["train", "test"] = Field(default="test", title="Split", description="Which split to read")
    max_records: int | None = Field(
        default=None, ge=1, title="Most records", description="Read at most this many"
    )
    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens, prompt and answer"
    )
    tokens_per_batch: int = Field(
        default=8192, ge=8, title="Tokens of a batch", description="Padded token budget of one batch"
    )
    sharing: Literal["auto", "off"] = Field(
        default="auto", title="Shared context", description="Read once what records of a context begin with"
    )
    mode: Literal["choice", "generate", "both"] = Field(
        default="choice", title="Mode", description="Score the record's choices, generate, or both"
    )
    prompt_template: str = Field(
        default=ALPACA_SHORT, title="Prompt", description="Format string with {instruction} and {input}"
    )
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices")  # type: ignore[arg-type]
    dtype: Dtype = Field(default="float32", title="Base dtype", description="Type of the base weights")
    quantization: Quantization = Field(
        default="none",
        title="Quantization",
        description="Of the projections: int8 (one scale an output channel) or nf4 (blocks of 64)",
    )
    attention: AttentionChoice = Field(
        default="auto",
        title="Attention",
        description="auto: cuDNN's where it applies (NVIDIA, bfloat16, rows of one example), else our own in "
        "blocks; blockwise: always our own",
    )
    output_dir: Path = Field(title="Output folder", description="predictions.parquet and result.json")
    compilation_cache_dir: Path | None = Field(
        default=None, title="Compilation cache", description="Folder, optional"
    )
