"""Which records are trained on, and how they are laid into batches."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from jora_core.specs.common import ALPACA_SHORT, SpecModel


class DataSpec(SpecModel):
    """Which records become examples, and how they are batched."""

    records: Path = Field(title="Records", description="Parquet file of Alpaca records")
    tasks: list[str] | None = Field(
        default=None, title="Tasks", description="Keep only these tasks; all if empty"
    )
    split: Literal["train", "test"] = Field(default="train", title="Split", description="Which split to read")
    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens, prompt and answer"
    )
    tokens_per_batch: int = Field(
        default=8192,
        ge=8,
        title="Tokens of a microbatch",
        description="Padded token budget of one microbatch",
    )
    max_records: int | None = Field(
        default=None, ge=1, title="Most records", description="Read at most this many"
    )
    sharing: Literal["auto", "off"] = Field(
        default="auto",
        title="Shared context",
        description="Compute once what examples of a context begin with",
    )
    prompt_template: str = Field(
        default=ALPACA_SHORT, title="Prompt", description="Format string with {instruction} and {input}"
    )
    validation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Validation share",
        description="Share of contexts kept for a validation loss",
    )
    curriculum: Literal["none", "length", "file"] = Field(
        default="none",
        title="Curriculum",
        description="First epoch: length = short examples first, file = as written",
    )
    alpaca_mix: float = Field(
        default=0.0,
        ge=0,
        title="General instructions",
        description="Instructions of another kind to mix in, as a share of the training records",
    )
    alpaca_path: Path | None = Field(
        default=None,
        title="Instruction file",
        description="Alpaca records to draw the mix from; a small built-in set if empty",
    )
    cache_dir: Path | None = Field(
        default=None, title="Token cache", description="Folder of tokenised records; none if empty"
    )

    @model_validator(mode="after")
    def _one_example_fits(self) -> DataSpec:
        if self.alpaca_path is not None and self.alpaca_mix == 0:
            raise ValueError("alpaca_path is given, but alpaca_mix is 0; give the share to mix in")
        if self.max_seq_len > self.tokens_per_batch:
            raise ValueError(
                f"tokens_per_batch ({self.tokens_per_batch}) must be at least max_seq_len "
                f"({self.max_seq_len})"
            )
        return self
