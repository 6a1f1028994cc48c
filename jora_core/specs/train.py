"""What each command of the training core is asked to do: one JSON file, one model, checked when made.

These models are the contract between whoever orders the work and the commands
(``python -m jora_core.commands.train --spec FILE`` and so on). This module imports no JAX, so that an
orchestrator can build and check an order without starting a device runtime. An unknown key is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from jora_core.specs.common import (
    AttentionChoice,
    DistributedSpec,
    Dtype,
    MeshSpec,
    Quantization,
    Reporter,
    SpecModel,
)
from jora_core.specs.data import DataSpec
from jora_core.specs.lora import LoraSpec


class OptimSpec(SpecModel):
    """AdamW with warm-up and decay."""

    learning_rate: float = Field(
        default=1e-4, gt=0, title="Learning rate", description="Peak, reached after warm-up"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", title="Schedule", description="Decay after warm-up"
    )
    warmup_ratio: float = Field(
        default=0.03, ge=0, le=1, title="Warm-up share", description="Share of all steps"
    )
    min_lr_ratio: float = Field(
        default=0.1, ge=0, le=1, title="Final rate", description="As a share of the peak"
    )
    weight_decay: float = Field(default=0.0, ge=0, title="Weight decay", description="Decoupled, as in AdamW")
    beta1: float = Field(default=0.9, ge=0, lt=1, title="Beta 1", description="Decay of the first moment")
    beta2: float = Field(default=0.999, ge=0, lt=1, title="Beta 2", description="Decay of the second moment")
    eps: float = Field(
        default=1e-8, gt=0, title="Epsilon", description="Added to the root of the second moment"
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, title="Gradient clip", description="Global norm of one step"
    )


def check_evaluation(
    evaluate_every: int | None, patience: int | None, keep_best: bool, validation_share: float
) -> None:
    """See that what depends on the validation loss has one, at steps that the order itself names.

    Raises:
        ValueError: early stopping or keep_best without validation_share or evaluate_every.
    """
    wants = "early_stopping_patience" if patience is not None else "keep_best" if keep_best else None
    if wants is None:
        return
    if validation_share == 0:
        raise ValueError(f"{wants} needs a validation loss; set validation_share above 0")
    if evaluate_every is None:
        # Not checkpoint_every: how often a checkpoint is written must not change what is trained.
        raise ValueError(f"{wants} needs evaluate_every: the steps between two validation losses")


class TrainSpec(SpecModel):
    """Train a LoRA adapter, or all parameters, of one model on one records file."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    init: Literal["pretrained", "random"] = Field(
        default="pretrained",
        title="Initial weights",
        description="random needs only config.json and the tokenizer",
    )
    trainable: Literal["lora", "all"] = Field(
        default="lora", title="Trainable", description="Adapter or all weights"
    )
    adapter: Path | None = Field(default=None, title="Adapter", description="PEFT folder to go on from")
    lora: LoraSpec = Field(default_factory=LoraSpec, title="LoRA", description="Adapter shape")  # type: ignore[arg-type]
    optim: OptimSpec = Field(default_factory=OptimSpec, title="Optimizer", description="AdamW")  # type: ignore[arg-type]
    data: DataSpec = Field(title="Data", description="Records and batching")
    max_steps: int | None = Field(
        default=None, ge=1, title="Steps", description="Optimizer steps; or give n_epochs"
    )
    n_epochs: float | None = Field(default=None, gt=0, title="Epochs", description="Passes over the data")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, title="Accumulation", description="Microbatches of one optimizer step"
    )
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices")  # type: ignore[arg-type]
    distributed: DistributedSpec | None = Field(
        default=None, title="Processes", description="If several share the mesh; else the JORA_… variables"
    )
    dtype: Dtype = Field(default="float32", title="Base dtype", description="Type of the frozen base weights")
    quantization: Quantization = Field(
        default="none",
        title="Quantization",
        description="Of the frozen projections: int8 (one scale an output channel) or nf4 (blocks of 64)",
    )
    remat: Literal["none", "dots", "attention", "full", "offload"] = Field(
        default="dots",
        title="Recompute",
        description="What is computed again instead of kept: none, all but matrix products (dots), all but "
        "attention, full (two residuals a layer are kept), offload (in the host's memory)",
    )
    attention: AttentionChoice = Field(
        default="auto",
        title="Attention",
        description="auto: cuDNN's where it applies (NVIDIA, bfloat16, rows of one example), else our own in "
        "blocks; blockwise: always our own",
    )
    seed: int = Field(default=0, ge=0, title="Seed", description="Order of examples, dropout, new adapters")
    checkpoint_every: int = Field(default=100, ge=1, title="Checkpoint every", description="Optimizer steps")
    keep_checkpoints: int = Field(
        default=2, ge=1, title="Checkpoints kept", description="The newest ones; the best stays besides"
    )
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        title="Evaluate every",
        description="Steps between validation losses; with each checkpoint if empty",
    )
    early_stopping_patience: int | None = Field(
        default=None,
        ge=1,
        title="Early stopping",
        description="Stop after this many evaluations without a better validation loss; never if empty",
    )
    early_stopping_min_delta: float = Field(
        default=0.0, ge=0, title="Least improvement", description="Of the validation loss, to count as better"
    )
    keep_best: bool = Field(
        default=False,
        title="Keep the best",
        description="Write the weights of the lowest validation loss, not the last ones",
    )
    report_to: list[Reporter] = Field(
        default=[], title="Report to", description="Besides metrics.jsonl; each needs the extra of its name"
    )
    report_dir: Path | None = Field(
        default=None, title="Report folder", description="Of these writers; <output_dir>/reports if empty"
    )
    output_dir: Path = Field(title="Output folder", description="Adapter, metrics.jsonl, result.json")
    checkpoint_dir: Path = Field(title="Checkpoint folder", description="Outlives a kill; a rerun resumes")
    compilation_cache_dir: Path | None = Field(
        default=None, title="Compilation cache", description="Folder, optional"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        if (self.max_steps is None) == (self.n_epochs is None):
            raise ValueError("give exactly one of max_steps and n_epochs")
        if self.trainable == "all" and self.adapter is not None:
            raise ValueError(
                "adapter is for trainable=lora; with trainable=all there is no adapter to continue"
            )
        if self.trainable == "all" and self.quantization != "none":
            raise ValueError(
                "quantization is of a frozen base, for trainable=lora; with trainable=all choose none"
            )
        check_evaluation(
            self.evaluate_every, self.early_stopping_patience, self.keep_best, self.data.validation_share
        )
        return self
