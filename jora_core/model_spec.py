"""What is asked of the commands that check, weigh and write models (see `jora_core.spec`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from jora_core.spec import (
    DataSpec,
    Dtype,
    LoraSpec,
    MeshSpec,
    Quantization,
    SpecModel,
)

Card = Literal[24, 40, 48, 80, 141]


class MemorySpec(SpecModel):
    """Say what a training step of one model takes on each device, without weights and without devices."""

    model: Path = Field(title="Model", description="config.json, or the folder that holds it")
    trainable: Literal["lora", "all"] = Field(
        default="lora", title="Trainable", description="Adapter or all weights"
    )
    lora: LoraSpec = Field(default_factory=LoraSpec, title="LoRA", description="Adapter shape")  # type: ignore[arg-type]
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices")  # type: ignore[arg-type]
    dtype: Dtype = Field(
        default="bfloat16", title="Base dtype", description="Type of the frozen base weights"
    )
    quantization: Quantization = Field(
        default="none", title="Quantization", description="Of the frozen projections, as in training"
    )
    remat: Literal["none", "dots", "attention", "full", "offload"] = Field(
        default="full", title="Recompute", description="What the backward pass computes again, as in training"
    )
    rows: int = Field(default=1, ge=1, title="Rows", description="Rows of a microbatch, over all devices")
    seq_len: int = Field(default=2048, ge=8, title="Row length", description="Tokens of a row")
    answer_tokens: int | None = Field(
        default=None,
        ge=1,
        title="Answer tokens",
        description="Supervised tokens a row; empty: an eighth",
    )
    card: Card | None = Field(
        default=None, title="Card", description="Memory of the card in GB; empty: the smallest that fits"
    )
    target: Literal["auto", "cuda", "host", "cpu"] = Field(
        default="auto",
        title="Compiler",
        description="cuda: a card described, not present; host: the CPU's compiler in its place; cpu: a run "
        "on this machine; auto: cuda where its plugin is installed, else host",
    )
    find_longest: bool = Field(
        default=True, title="Longest row", description="Search the longest row that fits the card"
    )
    output_dir: Path = Field(title="Output folder", description="result.json")

    @model_validator(mode="after")
    def _consistent(self) -> MemorySpec:
        if self.trainable == "all" and self.quantization != "none":
            raise ValueError("quantization is of a frozen base, for trainable=lora; choose none")
        return self


class SharingSpec(SpecModel):
    """Say how many token slots an order's records take, with their contexts shared and apart."""

    model: Path = Field(title="Model", description="Folder with config.json and the tokenizer")
    data: DataSpec = Field(title="Data", description="Records and batching, as in training")
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices")  # type: ignore[arg-type]
    seed: int = Field(default=0, ge=0, title="Seed", description="As in training")
    most_records: int = Field(
        default=10_000,
        ge=1,
        title="Most records",
        description="Where no token ids are cached, count the first ones only",
    )
    output_dir: Path = Field(title="Output folder", description="result.json")


class ConvertSpec(SpecModel):
    """Read a model folder, check every tensor, and write down what was read."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    dtype: Dtype = Field(default="float32", title="Dtype", description="Type the weights are read as")
    quantization: Quantization = Field(
        default="none",
        title="Quantization",
        description="Of the projections when they are read; checked against the mesh",
    )
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices")  # type: ignore[arg-type]
    output_dir: Path = Field(title="Output folder", description="model.json and result.json")


class ExportSpec(SpecModel):
    """Write a merged Hugging Face model, the PEFT adapter and a model card with its lineage."""

    model: Path = Field(title="Model", description="Base model folder in Hugging Face layout")
    adapter: Path = Field(title="Adapter", description="PEFT folder to merge")
    then: list[Path] = Field(
        default=[],
        title="Further adapters",
        description="PEFT folders merged after it in this order, each over the result of those before",
    )
    dtype: Dtype | None = Field(
        default=None, title="Dtype", description="Of the merged weights; as the base if empty"
    )
    max_shard_size: int = Field(
        default=5_000_000_000,
        ge=1,
        title="Largest weights file",
        description="Bytes; a larger model is written in shards with an index",
    )
    output_dir: Path = Field(title="Output folder", description="model/, adapter/, README.md")
    verify: bool = Field(
        default=True, title="Verify", description="Read the written tensors back and compare"
    )
    lineage: dict[str, Any] = Field(
        default_factory=dict,
        title="Lineage",
        description="Digests of data, config and code, kept in the card",
    )
