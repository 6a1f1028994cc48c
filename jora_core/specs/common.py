"""Settings that several specs share, each declared once.

The pipeline's configuration inherits from the same models: titles and descriptions are what its form shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# The headings of Stanford Alpaca's prompt, without the sentence that introduces them.
ALPACA_SHORT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
Dtype = Literal["float32", "bfloat16"]
# The same names are static fields of `QuantizedWeight`, so a new one needs its arithmetic there.
Quantization = Literal["none", "int8", "nf4"]
Reporter = Literal["tensorboard", "wandb"]
AttentionChoice = Literal["auto", "blockwise"]
# What the backward pass computes again, see `jora_core.model.rematerialization`.
Remat = Literal["none", "dots", "attention", "full", "offload"]
# YAML 1.1 reads `off` as false and `on` as true.
Sharing = Annotated[
    Literal["auto", "off"],
    BeforeValidator(lambda value: ("auto" if value else "off") if isinstance(value, bool) else value),
]


class SpecModel(BaseModel):
    """Base of every spec: frozen, no unknown keys, numbers finite."""

    # A misspelt key would leave the default in place without a word; NaN and infinity have no JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def values_of(group: type[SpecModel], given: SpecModel) -> dict[str, Any]:
    """The values of one group of settings, by name: what another model with the same group is made of.

    Args:
        group: the settings, such as `TrainingSettings`.
        given: a model that inherits them.
    """
    # Not `model_dump`: it would turn the models inside into dicts.
    return {name: getattr(given, name) for name in group.model_fields}


class MeshSpec(SpecModel):
    """How many devices split the batch, and how many split one copy of the weights."""

    # 1 x 1 runs the same code as any mesh, with collectives that do nothing.
    data: int = Field(default=1, ge=1, title="Data axis", description="Devices that split the batch")
    tensor: int = Field(
        default=1, ge=1, title="Tensor axis", description="Devices that split each weight matrix"
    )

    @property
    def devices(self) -> int:
        """Number of devices that the mesh needs."""
        return self.data * self.tensor


class DistributedSpec(SpecModel):
    """This process's place among those that share one mesh."""

    coordinator_address: str = Field(
        title="Coordinator", description="host:port of the first process, reachable from all"
    )
    num_processes: int = Field(ge=1, title="Processes", description="How many there are")
    process_id: int = Field(ge=0, title="This process", description="From 0; the first writes the outputs")
    timeout_seconds: int = Field(
        default=300, ge=1, title="Timeout", description="Seconds to wait for the others"
    )

    @model_validator(mode="after")
    def _id_is_below_the_count(self) -> DistributedSpec:
        # Else JAX waits for a process that never comes, until the timeout.
        if self.process_id >= self.num_processes:
            raise ValueError(f"process_id {self.process_id} must be below num_processes {self.num_processes}")
        return self


class WeightSettings(SpecModel):
    """How the base model's weights are held in memory."""

    dtype: Dtype = Field(
        default="float32", title="Weight type", description="Type of the frozen base weights in memory"
    )
    quantization: Quantization = Field(
        default="none",
        title="Quantization",
        description="Frozen projections in fewer bits: int8 or nf4; an export merges into the whole weights",
    )


class ComputeSettings(WeightSettings):
    """How the base model is held and computed."""

    attention: AttentionChoice = Field(
        default="auto",
        title="Attention",
        description="auto: cuDNN's where it applies (NVIDIA, bfloat16), else our own; blockwise: our own",
    )


class MeshSettings(SpecModel):
    """The devices of a command."""

    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices and their axes")


class ModelRun(MeshSettings, ComputeSettings):
    """What every command that runs a model is asked: which model, how, on which devices."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    compilation_cache_dir: Path | None = Field(
        default=None, title="Compilation cache", description="Folder of compiled programs; none if empty"
    )


class SequenceLimit(SpecModel):
    """The longest prompt and answer together."""

    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens of prompt and answer"
    )
