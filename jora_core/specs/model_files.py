"""Specs of the commands that check and export models (see `jora_core.specs.train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from jora_core.specs.common import Dtype, MeshSettings, SpecModel, WeightSettings
from jora_core.specs.prompts.settings import PromptSpec


class ConvertSpec(MeshSettings, WeightSettings):
    """Check every tensor of a model folder, and describe the model in a file."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    output_dir: Path = Field(title="Output folder", description="model.json and result.json")


class ExportSettings(SpecModel):
    """Type and shard size of a merged model's weights files."""

    dtype: Dtype | None = Field(
        default=None, title="Weight type", description="Of the merged weights; empty: as the base"
    )
    # As `safetensors_writer.MAX_SHARD_SIZE`; the specs import nothing that reads weights.
    max_shard_size: int = Field(
        default=5_000_000_000,
        ge=1,
        title="Largest weights file",
        description="Bytes; a larger model is written in shards with an index",
    )


class ExportSpec(ExportSettings):
    """Write a merged Hugging Face model, its PEFT adapter, and a model card with the lineage."""

    model: Path = Field(title="Model", description="Base model folder in Hugging Face layout")
    adapter: Path = Field(title="Adapter", description="PEFT folder to merge")
    # Each DoRA adapter needs the norms of the weights that it was trained on, so their sequence counts.
    then: list[Path] = Field(
        default=[],
        title="Further adapters",
        description="PEFT folders merged after it in this order, each over the result of those before",
    )
    prompt: PromptSpec | None = Field(
        default=None,
        title="Prompt",
        description="The frame of the training's prompts, for the files of the model; unknown if empty",
    )
    output_dir: Path = Field(title="Output folder", description="model/, adapter/, README.md")
    verify: bool = Field(
        default=True, title="Verify", description="Read the written tensors back and compare"
    )
    # Free form: the caller decides what it records, and the card shows it as JSON.
    lineage: dict[str, Any] = Field(
        default_factory=dict,
        title="Lineage",
        description="Digests of data, config and code, kept in the card",
    )
