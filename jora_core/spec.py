"""What each command of the training core is asked to do: one JSON file, one model, checked when made.

These models are the contract between whoever orders the work and the commands
(``python -m jora_core.train --spec FILE`` and so on). This module imports no JAX, so that an orchestrator can
build and check an order without starting a device runtime. An unknown key is an error.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jora_core.errors import InputError

ALPACA_SHORT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Dtype = Literal["float32", "bfloat16"]


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


class LoraSpec(SpecModel):
    """Low-rank adapter: rank, scale, dropout and the projections that get one (names as in PEFT)."""

    r: int = Field(default=16, ge=1, title="Rank", description="Inner width R of A [R, in] and B [out, R]")
    lora_alpha: float = Field(
        default=16, gt=0, title="Alpha", description="The update is scaled by alpha / r"
    )
    lora_dropout: float = Field(
        default=0.05, ge=0, lt=1, title="Dropout", description="Dropout on the adapter's input"
    )
    target_modules: list[LoraTarget] = Field(
        default=["q_proj", "v_proj"],
        min_length=1,
        title="Targets",
        description="Projections that get an adapter",
    )

    @property
    def scale(self) -> float:
        """The factor alpha / r of the update B @ A."""
        return self.lora_alpha / self.r


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
        description="Let examples of one context share one pass over it",
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

    @model_validator(mode="after")
    def _one_example_fits(self) -> DataSpec:
        if self.max_seq_len > self.tokens_per_batch:
            raise ValueError(
                f"tokens_per_batch ({self.tokens_per_batch}) must be at least max_seq_len "
                f"({self.max_seq_len})"
            )
        return self


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
    dtype: Dtype = Field(default="float32", title="Base dtype", description="Type of the frozen base weights")
    remat: Literal["none", "full"] = Field(
        default="none",
        title="Recompute",
        description="full keeps one residual a layer and recomputes the rest",
    )
    seed: int = Field(default=0, ge=0, title="Seed", description="Order of examples, dropout, new adapters")
    checkpoint_every: int = Field(default=100, ge=1, title="Checkpoint every", description="Optimizer steps")
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
        return self


class ConvertSpec(SpecModel):
    """Read a model folder, check every tensor, and write down what was read."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    dtype: Dtype = Field(default="float32", title="Dtype", description="Type the weights are read as")
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices")  # type: ignore[arg-type]
    output_dir: Path = Field(title="Output folder", description="model.json and result.json")


class PredictSpec(SpecModel):
    """Answer held-out records with one base model and any number of adapters over it."""

    model: Path = Field(title="Model", description="Model folder in Hugging Face layout")
    systems: dict[str, Path | None] = Field(
        min_length=1, title="Systems", description="Name to PEFT folder; null is the base model alone"
    )
    records: Path = Field(title="Records", description="Parquet file of Alpaca records")
    task: str | None = Field(default=None, title="Task", description="Keep only this task; all if empty")
    split: Literal["train", "test"] = Field(default="test", title="Split", description="Which split to read")
    max_records: int | None = Field(
        default=None, ge=1, title="Most records", description="Read at most this many"
    )
    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens, prompt and answer"
    )
    tokens_per_batch: int = Field(
        default=8192, ge=8, title="Tokens of a batch", description="Padded token budget of one batch"
    )
    mode: Literal["choice", "generate", "both"] = Field(
        default="choice", title="Mode", description="Score the record's choices, generate greedily, or both"
    )
    max_new_tokens: int = Field(
        default=32, ge=1, title="Longest answer", description="Tokens generated at most"
    )
    prompt_template: str = Field(
        default=ALPACA_SHORT, title="Prompt", description="Format string with {instruction} and {input}"
    )
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices")  # type: ignore[arg-type]
    dtype: Dtype = Field(default="float32", title="Base dtype", description="Type of the base weights")
    output_dir: Path = Field(title="Output folder", description="predictions.parquet and result.json")
    compilation_cache_dir: Path | None = Field(
        default=None, title="Compilation cache", description="Folder, optional"
    )


class ExportSpec(SpecModel):
    """Write a merged Hugging Face model, the PEFT adapter and a model card with its lineage."""

    model: Path = Field(title="Model", description="Base model folder in Hugging Face layout")
    adapter: Path = Field(title="Adapter", description="PEFT folder to merge")
    dtype: Dtype | None = Field(
        default=None, title="Dtype", description="Of the merged weights; as the base if empty"
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


AnySpec = TypeVar("AnySpec", bound=BaseModel)


def read_spec(path: Path, model: type[AnySpec]) -> AnySpec:
    """Read and check one spec file.

    Raises:
        InputError: no such file, broken JSON, unknown key (with the nearest known one), wrong type or value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as err:
        raise InputError(f"cannot read spec {path}: {err.strerror or err}") from None
    except UnicodeDecodeError as err:
        raise InputError(f"spec {path} is not UTF-8 text: {err.reason} at byte {err.start}") from None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as err:
        raise InputError(f"spec {path}, line {err.lineno}: broken JSON ({err.msg})") from None
    try:
        return model.model_validate(data)
    except ValidationError as err:
        raise InputError(f"spec {path}: {describe_validation_error(err, model)}") from None


def describe_validation_error(err: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first problem of a pydantic error: the field, and for a typo the nearest key."""
    first = err.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the spec"
    more = f" (and {err.error_count() - 1} more)" if err.error_count() > 1 else ""
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}{more}"
    known = _fields_at(model, first["loc"][:-1])
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
    return f"{where}: unknown key; {hint}{more}"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names of the nested model that stands at `path` below `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
