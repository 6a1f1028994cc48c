"""Specs of the commands that plan memory and count shared contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from jora_core.specs.common import Dtype, MeshSettings, Remat, WeightSettings
from jora_core.specs.data import DataSpec
from jora_core.specs.lora import LoraSpec

# Cards by their memory in GB: L4 and 4090 (24), A100 (40 or 80), L40S (48), H100 (80), H200 (141).
Card = Literal[24, 40, 48, 80, 141]


class MemorySpec(MeshSettings, WeightSettings):
    """Plan the memory of a training step on each device, without weights or devices."""

    model: Path = Field(title="Model", description="config.json, or the folder that holds it")
    trainable: Literal["lora", "all"] = Field(
        default="lora", title="Trainable", description="Adapter or all weights"
    )
    lora: LoraSpec = Field(default_factory=LoraSpec, title="LoRA", description="Adapter shape")
    # The type in which current cards compute.
    dtype: Dtype = Field(
        default="bfloat16", title="Weight type", description="Type of the frozen base weights in memory"
    )
    remat: Remat = Field(
        default="full", title="Recompute", description="What the backward pass computes again, as in training"
    )
    rows: int = Field(default=1, ge=1, title="Rows", description="Rows of a microbatch, over all devices")
    seq_len: int = Field(default=2048, ge=8, title="Row length", description="Tokens of a row")
    # The loss forms logits at supervised tokens alone: [answer tokens, V] in float32.
    answer_tokens: int | None = Field(
        default=None,
        ge=1,
        title="Answer tokens",
        description="Supervised tokens a row; empty: an eighth",
    )
    card: Card | None = Field(
        default=None, title="Card", description="Memory of the card in GB; empty: the smallest that fits"
    )
    target: Literal["auto", "cuda", "tpu", "host", "cpu"] = Field(
        default="auto",
        title="Compiler",
        description="cuda: a card described, not present; tpu: a TPU slice, likewise; host: the CPU's "
        "compiler in its place; cpu: a run on this machine; auto: cuda where its plugin is installed, else "
        "host",
    )
    topology: str | None = Field(
        default=None,
        title="TPU slice",
        description="For the target tpu: chip and shape, such as v5e:2x4; empty: v5e:2x4",
    )
    find_longest: bool = Field(
        default=True, title="Longest row", description="Search the longest row that fits the card"
    )
    output_dir: Path = Field(title="Output folder", description="result.json")

    @model_validator(mode="after")
    def _consistent(self) -> MemorySpec:
        # As in `TrainSpec`: codes are integers, and no gradient could change them.
        if self.trainable == "all" and self.quantization != "none":
            raise ValueError("quantization is of a frozen base, for trainable=lora; choose none")
        if self.topology is not None and self.target != "tpu":
            raise ValueError(f"topology is for target=tpu, and target is {self.target}")
        if self.card is not None and self.target == "tpu":
            raise ValueError("card is for NVIDIA cards; with target=tpu the topology names the chip")
        return self


class SharingSpec(MeshSettings):
    """Count the token slots of records with and without shared contexts."""

    model: Path = Field(title="Model", description="Folder with config.json and the tokenizer")
    data: DataSpec = Field(title="Data", description="Records and batching, as in training")
    seed: int = Field(default=0, ge=0, title="Seed", description="As in training")
    most_records: int = Field(
        default=10_000,
        ge=1,
        title="Most records",
        description="Where no token ids are cached, count the first ones only",
    )
    output_dir: Path = Field(title="Output folder", description="result.json")
