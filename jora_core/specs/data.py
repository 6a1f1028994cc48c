"""Settings of the training data: selection of records, and batching."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, model_validator

from jora_core.specs.common import SequenceLimit, Sharing
from jora_core.specs.prompts.settings import PromptSettings


class BatchingSettings(SequenceLimit):
    """Settings of batching, validation split, and mixed-in instructions."""

    # Tokens and not rows: rows differ in length, and the memory of a step follows the tokens.
    tokens_per_batch: int = Field(
        default=8192,
        ge=8,
        title="Tokens of a microbatch",
        description="Padded tokens computed at once; bounds the memory",
    )
    max_records: int | None = Field(
        default=None, ge=1, title="Most records", description="Train on at most this many"
    )
    sharing: Sharing = Field(
        default="auto",
        title="Shared context",
        description="Compute once what examples of a context begin with",
    )
    curriculum: Literal["none", "length", "file"] = Field(
        default="none",
        title="Curriculum",
        description="Order of the first epoch: length: short examples first; file: as the file has them",
    )
    # Whole contexts are kept: records of one context in both parts would make the loss look too good.
    validation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Validation share",
        description="Share of training contexts kept for a validation loss",
    )
    alpaca_mix: float = Field(
        default=0.0,
        ge=0,
        title="General instructions",
        description="Instructions of another kind to mix in, as a share of the training records",
    )
    # Without the schema, the form's field would have a "format" that it does not know.
    alpaca_path: Annotated[Path, WithJsonSchema({"type": "string"})] | None = Field(
        default=None,
        title="Instruction file",
        description="Alpaca records to draw the mix from; a small built-in set if empty",
    )

    def validates(self, context: str, seed: int) -> bool:
        """Return whether the records of a training context are kept for the validation loss.

        The hash of the context's name decides. So all records of a context are on one side, and a record
        stays on its side when other records are added or removed.

        Args:
            context: name of the context, or of a record without one.
            seed: seed of the training.
        """
        # Python's own `hash` of a text differs from process to process.
        digest = hashlib.sha256(f"{seed}:{context}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2.0**64 < self.validation_share

    @model_validator(mode="after")
    def _one_example_fits(self) -> BatchingSettings:
        if self.alpaca_path is not None and self.alpaca_mix == 0:
            raise ValueError("alpaca_path is given, but alpaca_mix is 0; give the share to mix in")
        # A batch holds whole rows, so the longest row must fit into one.
        if self.max_seq_len > self.tokens_per_batch:
            raise ValueError(
                f"tokens_per_batch ({self.tokens_per_batch}) must be at least max_seq_len "
                f"({self.max_seq_len})"
            )
        return self


class DataSpec(PromptSettings, BatchingSettings):
    """Selection of the records for training, with their prompts and batching."""

    records: Path = Field(title="Records", description="Parquet file of Alpaca records, or of `messages`")
    tasks: list[str] | None = Field(
        default=None, title="Tasks", description="Keep only these tasks; all if empty"
    )
    split: Literal["train", "test"] = Field(default="train", title="Split", description="Which split to read")
    cache_dir: Path | None = Field(
        default=None, title="Token cache", description="Folder of tokenized records; none if empty"
    )
