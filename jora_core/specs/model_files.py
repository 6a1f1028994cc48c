"""Specs of the commands that convert, check and export models (see `jora_core.specs.train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jora_core.specs.common import Dtype, MeshSettings, SpecModel, WeightSettings
from jora_core.specs.prompts.settings import PromptSpec


class ConvertSpec(MeshSettings, WeightSettings):
    """Check every tensor of a model folder, and describe the model in a file."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    output_dir: Path = Field(title="Output folder", description="model.json and result.json")


class FolderSpec(SpecModel):
    """Write a base model of another layout as a model folder in Hugging Face layout."""

    source: Path = Field(title="Source", description="GGUF file or one part of a split one, or Meta's folder")
    folder: Path = Field(title="Model folder", description="Folder to write")
    tokenizer_only: bool = Field(
        default=False, title="Tokenizer only", description="Write the tokenizer and no weights"
    )
    output_dir: Path = Field(title="Output folder", description="result.json")


ExportFormat = Literal["hf", "peft", "gguf"]
GgufType = Literal["f32", "f16", "bf16", "q8_0"]


class ExportSettings(SpecModel):
    """Formats of an exported model, and types and sizes of its weights files."""

    formats: list[ExportFormat] = Field(
        default=["hf", "peft"],
        min_length=1,
        title="Formats",
        description="hf: merged model folder; peft: adapter; gguf: merged model for llama.cpp and Ollama",
    )
    gguf: GgufType = Field(
        default="q8_0", title="GGUF type", description="Type of the matrices in the GGUF file"
    )

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
    license: str | None = Field(
        default=None,
        title="Licence",
        description="Of the exported model, for its card; empty: that of the base model, where it names one",
    )
    data_licenses: dict[str, str] = Field(
        default_factory=dict,
        title="Licences of the data",
        description="Name of a corpus to its licence, for the card, such as {wikitables: CC-BY-SA-4.0}",
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
    base_name: str = Field(
        default="", title="Base name", description="Of the base model in the card; empty: its folder's"
    )
    output_dir: Path = Field(title="Output folder", description="model/, adapter/, gguf/, README.md")
    verify: bool = Field(
        default=True, title="Verify", description="Read the written tensors back and compare"
    )
    # Free form: the caller decides what it records, and the card shows it as JSON.
    lineage: dict[str, Any] = Field(
        default_factory=dict,
        title="Lineage",
        description="Digests of data, config and code, kept in the card",
    )
    measures: dict[str, dict[str, dict[str, Any]]] = Field(
        default_factory=dict,
        title="Measures",
        description="System to measure to value, low, high and n, shown in the card",
    )
    measure_warnings: list[str] = Field(
        default_factory=list,
        title="Warnings of the measures",
        description="Which measures' intervals are not to be trusted, and why, a sentence each, for the card",
    )
    synthetic: str = Field(
        default="",
        title="Synthetic data",
        description="What a model made of the training data, in a sentence",
    )
    system: str = Field(default="", title="System", description="Name of this model among the measures")
