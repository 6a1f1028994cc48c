"""Spec of the command `jora_core.commands.train`.

A spec is the contract between a caller and a command (``python -m jora_core.commands.train --spec FILE``). It
is one JSON file and one Pydantic model, which checks the values. The specs import no JAX, so a caller can
make a spec without starting a device runtime. An unknown key is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from jora_core.specs.common import DistributedSpec, ModelRun, Remat, Reporter, SpecModel
from jora_core.specs.data import DataSpec
from jora_core.specs.lora import LoraSpec


class OptimSpec(SpecModel):
    """AdamW (arXiv:1711.05101) with warm-up and decay of the learning rate."""

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
    loraplus_lr_ratio: float = Field(
        default=1.0,
        gt=0,
        title="LoRA+ ratio",
        description="Learning rate of B (and of DoRA's magnitudes) as a multiple of A's (arXiv:2402.12354)",
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, title="Gradient clip", description="Global norm of one step"
    )


class TrainingSettings(SpecModel):
    """Settings of training: adapter, optimizer, number of steps, evaluation and checkpoints."""

    lora: LoraSpec = Field(
        default_factory=LoraSpec,
        title="LoRA",
        description="Adapter shape; the second phase takes the first one's",
    )
    optim: OptimSpec = Field(
        default_factory=OptimSpec, title="Optimizer", description="AdamW and its schedule"
    )
    max_steps: int | None = Field(
        default=None, ge=1, title="Steps", description="Optimizer steps; or give n_epochs"
    )
    n_epochs: float | None = Field(
        default=None, gt=0, title="Epochs", description="Passes over the records; or max_steps"
    )
    neftune_noise_alpha: float | None = Field(
        default=None,
        gt=0,
        title="NEFTune noise",
        description="Strength of noise on the embeddings in training, such as 5 (arXiv:2310.05914); empty: "
        "none",
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, title="Accumulation", description="Microbatches of one optimizer step"
    )
    remat: Remat = Field(
        default="dots",
        title="Recompute",
        description="In the backward pass: none; dots: all but matrix products; attention: the MLP as well; "
        "full: all but two residuals a layer (a third more time); offload: full, those on the host",
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
        description="Hand on the adapter of the lowest validation loss, not the last one",
    )
    report_to: list[Reporter] = Field(
        default=[],
        title="Report to",
        description="Curves for TensorBoard, Weights & Biases or MLflow; each needs the extra of its name",
    )
    # This has no effect on the trained weights, so that a run may change it and continue.
    checkpoint_every: int = Field(
        default=100, ge=1, title="Checkpoint every", description="Steps lost at most by a kill"
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        # With neither there is no end, and both may name two different ones.
        if (self.max_steps is None) == (self.n_epochs is None):
            raise ValueError("give exactly one of max_steps and n_epochs")
        return self

    def check_evaluation(self, validation_share: float) -> None:
        """Check that settings that need a validation loss come with a validation split and `evaluate_every`.

        Raises:
            ValueError: early stopping or keep_best without validation_share or evaluate_every.
        """
        patient = self.early_stopping_patience is not None
        needs = "early_stopping_patience" if patient else "keep_best" if self.keep_best else None
        if needs is None:
            return
        # Checked here and not at the first evaluation, which may be hours later.
        if validation_share == 0:
            raise ValueError(f"{needs} needs a validation loss; set validation_share above 0")
        if self.evaluate_every is None:
            # Not checkpoint_every: how often a checkpoint is written must not change what is trained.
            raise ValueError(f"{needs} needs evaluate_every: the steps between two validation losses")


class TrainSpec(TrainingSettings, ModelRun):
    """Train a LoRA adapter, or all parameters, of one model on one records file."""

    # "random" is for tests and measurements without a download of weights.
    init: Literal["pretrained", "random"] = Field(
        default="pretrained",
        title="Initial weights",
        description="random needs only config.json and the tokenizer",
    )
    trainable: Literal["lora", "all"] = Field(
        default="lora", title="Trainable", description="Adapter or all weights"
    )
    adapter: Path | None = Field(default=None, title="Adapter", description="PEFT folder to continue from")
    continue_from: Path | None = Field(
        default=None,
        title="Continue from",
        description="Folder of a finished training with its state, which goes on to more steps",
    )
    keep_state: bool = Field(
        default=False, title="Keep the state", description="Beside the adapter, so that it can go on later"
    )
    data: DataSpec = Field(title="Data", description="Records and batching")
    # Empty in most runs: with it, every process has a spec of its own that differs in process_id alone.
    distributed: DistributedSpec | None = Field(
        default=None, title="Processes", description="If several share the mesh; else the JORA_… variables"
    )
    seed: int = Field(default=0, ge=0, title="Seed", description="Order of examples, dropout, new adapters")
    keep_checkpoints: int = Field(
        default=2, ge=1, title="Checkpoints kept", description="The newest ones; the best is kept besides"
    )
    report_dir: Path | None = Field(
        default=None, title="Report folder", description="Of the curves; <output_dir>/reports if empty"
    )
    report_tags: dict[str, str] = Field(
        default_factory=dict,
        title="Report tags",
        description="What the training was made from, for MLflow's run; decides nothing",
    )
    output_dir: Path = Field(title="Output folder", description="Adapter, metrics.jsonl, result.json")
    checkpoint_dir: Path = Field(
        title="Checkpoint folder", description="A run that was killed continues from here"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        if self.trainable == "all" and self.adapter is not None:
            raise ValueError(
                "adapter is for trainable=lora; with trainable=all there is no adapter to continue"
            )
        if self.trainable == "all" and self.optim.loraplus_lr_ratio != 1:
            raise ValueError("optim.loraplus_lr_ratio is for trainable=lora; leave it out")
        # Codes are integers: no gradient could change them.
        if self.trainable == "all" and self.quantization != "none":
            raise ValueError(
                "quantization is of a frozen base, for trainable=lora; with trainable=all choose none"
            )
        self.check_evaluation(self.data.validation_share)
        return self
