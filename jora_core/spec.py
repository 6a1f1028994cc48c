"""What each command of the training core is asked to do: one JSON file, one model, checked when made.

These models are the contract between whoever orders the work and the commands
(``python -m jora_core.train --spec FILE`` and so on). This module imports no JAX, so that an orchestrator can
build and check an order without starting a device runtime. An unknown key is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jora_core.targets import PROJECTIONS, check_targets

ALPACA_SHORT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
LORA_TARGETS = tuple(PROJECTIONS)

LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
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


class LoraSpec(SpecModel):
    """Low-rank adapter: rank, scale, dropout and the projections that get one (names as in PEFT)."""

    r: int = Field(default=16, ge=1, title="Rank", description="Inner width R of A [R, in] and B [out, R]")
    lora_alpha: float = Field(
        default=16,
        gt=0,
        title="Alpha",
        description="The update is scaled by alpha / r, or by alpha / sqrt(r) with rsLoRA",
    )
    lora_dropout: float = Field(
        default=0.05, ge=0, lt=1, title="Dropout", description="Dropout on the adapter's input"
    )
    target_modules: list[LoraTarget] | str = Field(
        default=["q_proj", "v_proj"],
        title="Targets",
        description="Projections that get an adapter, in every layer: a list of names, all-linear, or a "
        "regular expression for whole module names such as model.layers.0.self_attn.q_proj",
    )
    use_rslora: bool = Field(
        default=False,
        title="Rank-stabilised scale",
        description="rsLoRA: scale by alpha / sqrt(r), so that higher ranks keep learning",
    )
    use_dora: bool = Field(
        default=False,
        title="DoRA",
        description="Also train the length of each weight row: a slower step, better at low ranks",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _known_targets(cls, value: Any) -> Any:
        """One line for a wrong choice, where the union would report each of its forms."""
        if isinstance(value, tuple | set | frozenset):
            value = sorted(value, key=str)
        if not isinstance(value, str) and not (
            isinstance(value, list) and all(isinstance(v, str) for v in value)
        ):
            raise ValueError(f"expected a list of names or one pattern, found {type(value).__name__}")
        check_targets(value)
        return value

    @property
    def scale(self) -> float:
        """The factor s of the update s · B A: alpha / r, with rsLoRA alpha / √r (arXiv:2312.03732)."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


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


class DataSpec(SpecModel):
    """Which records become examples, and how they are batched."""

    records: Path = Field(title="Records", description="Parquet file of Alpaca records")
    tasks: list[str] | None = Field(
        default=None, title="Tasks", description="Keep only these tasks; all if empty"
    )
    split: Literal["train", "test"] = Field(default="train", title="Split", description="Which split to read")
    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens, prompt and answer"
    )
    tokens_per_batch: int = Field(
        default=8192,
        ge=8,
        title="Tokens of a microbatch",
        description="Padded token budget of one microbatch",
    )
    max_records: int | None = Field(
        default=None, ge=1, title="Most records", description="Read at most this many"
    )
    sharing: Literal["auto", "off"] = Field(
        default="auto",
        title="Shared context",
        description="Compute once what examples of a context begin with",
    )
    prompt_template: str = Field(
        default=ALPACA_SHORT, title="Prompt", description="Format string with {instruction} and {input}"
    )
    validation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Validation share",
        description="Share of contexts kept for a validation loss",
    )
    curriculum: Literal["none", "length", "file"] = Field(
        default="none",
        title="Curriculum",
        description="First epoch: length = short examples first, file = as written",
    )
    alpaca_mix: float = Field(
        default=0.0,
        ge=0,
        title="General instructions",
        description="Instructions of another kind to mix in, as a share of the training records",
    )
    alpaca_path: Path | None = Field(
        default=None,
        title="Instruction file",
        description="Alpaca records to draw the mix from; a small built-in set if empty",
    )
    cache_dir: Path | None = Field(
        default=None, title="Token cache", description="Folder of tokenised records; none if empty"
    )

    @model_validator(mode="after")
    def _one_example_fits(self) -> DataSpec:
        if self.alpaca_path is not None and self.alpaca_mix == 0:
            raise ValueError("alpaca_path is given, but alpaca_mix is 0; give the share to mix in")
        if self.max_seq_len > self.tokens_per_batch:
            raise ValueError(
                f"tokens_per_batch ({self.tokens_per_batch}) must be at least max_seq_len "
                f"({self.max_seq_len})"
            )
        return self


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
