"""Groups of settings that several specs share.

The pipeline's configuration inherits from the same models, and its form shows their titles and descriptions.
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
Reporter = Literal["tensorboard", "wandb", "mlflow"]
# Package that a writer of curves needs. tensorboardX writes TensorBoard's files without TensorFlow or torch.
REPORTER_PACKAGES: dict[Reporter, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
AttentionChoice = Literal["auto", "blockwise"]
# The names of JAX's own setting, `jax_default_matmul_precision`.
MatmulPrecision = Literal["default", "bfloat16"]
# What the backward pass computes again, see `jora_core.model.rematerialization`.
Remat = Literal["none", "dots", "attention", "full", "offload"]
# YAML 1.1 reads `off` as false and `on` as true.
Sharing = Annotated[
    Literal["auto", "off"],
    BeforeValidator(lambda value: ("auto" if value else "off") if isinstance(value, bool) else value),
]


class SpecModel(BaseModel):
    """Base class of all specs: frozen, without unknown keys, with finite numbers."""

    # A misspelt key would silently leave the default in place. JSON has no NaN or infinity.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)


def values_of(group: type[SpecModel], given: SpecModel) -> dict[str, Any]:
    """Return the values of one group of settings, by name, as arguments for another model of the group.

    Args:
        group: class of the settings, such as `TrainingSettings`.
        given: model of a class that inherits from `group`.
    """
    # Not `model_dump`: it would turn the models inside into dicts.
    return {name: getattr(given, name) for name in group.model_fields}


class MeshSpec(SpecModel):
    """Shape of the device mesh: devices that split the batch, and devices that split the weights."""

    # 1 x 1 runs the same code as any mesh, with collectives that do nothing.
    data: int = Field(default=1, ge=1, title="Data axis", description="Devices that split the batch")
    tensor: int = Field(
        default=1, ge=1, title="Tensor axis", description="Devices that split each weight matrix"
    )

    @property
    def devices(self) -> int:
        """Number of devices of the mesh."""
        return self.data * self.tensor


class DistributedSpec(SpecModel):
    """Settings of one process among several that share a mesh."""

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
    """Type and quantization of the base model's weights in memory."""

    dtype: Dtype = Field(
        default="float32", title="Weight type", description="Type of the frozen base weights in memory"
    )
    quantization: Quantization = Field(
        default="none",
        title="Quantization",
        description="Frozen projections in fewer bits: int8 or nf4; an export merges into the whole weights",
    )


class ComputeSettings(WeightSettings):
    """Settings of the base model's computation: weights in memory and attention kernel."""

    attention: AttentionChoice = Field(
        default="auto",
        title="Attention",
        description="auto: the device's kernel, else XLA's blocks; blockwise: always these",
    )
    matmul_precision: MatmulPrecision = Field(
        default="default",
        title="Matrix products",
        description="default: in the weights' type; bfloat16: projections and attention round the inputs of "
        "products to bfloat16 and add up in float32; faster on a processor with AMX",
    )


class MeshSettings(SpecModel):
    """Device mesh of a command."""

    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices and their axes")


class ModelRun(MeshSettings, ComputeSettings):
    """Settings of every command that runs a model: model folder, computation and devices."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    compilation_cache_dir: Path | None = Field(
        default=None, title="Compilation cache", description="Folder of compiled programs; none if empty"
    )


class SequenceLimit(SpecModel):
    """Limit of the tokens of prompt and answer together."""

    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens of prompt and answer"
    )
