"""What several specs share: types of settings, the mesh, several processes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ALPACA_SHORT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
Dtype = Literal["float32", "bfloat16"]
Quantization = Literal["none", "int8", "nf4"]
Reporter = Literal["tensorboard", "wandb"]
AttentionChoice = Literal["auto", "blockwise"]


class SpecModel(BaseModel):
    """Base of every spec: frozen, no unknown keys, numbers finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MeshSpec(SpecModel):
    """How many devices share the batch and how many share one copy of the weights."""

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
    timeout_seconds: int = Field(default=300, ge=1, title="Patience", description="To wait for the others")

    @model_validator(mode="after")
    def _one_of_them(self) -> DistributedSpec:
        if self.process_id >= self.num_processes:
            raise ValueError(f"process_id {self.process_id} must be below num_processes {self.num_processes}")
        return self
