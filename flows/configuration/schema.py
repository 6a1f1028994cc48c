"""The one configuration of a pipeline: what `jora run CONFIG` reads and the Prefect form shows.

Relative paths of the file count from `root`, and `root` itself from the file's own folder (default: that
folder), so a configuration means the same from any working directory. Two things count from the working
directory instead: `store`, because what a run writes belongs to whoever runs it, and paths given with
`--set`, because they are typed there. `${NAME}` and `${NAME:-default}` in a path are replaced from the
environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from flows.configuration.path_fields import resolve_paths
from jora_core.specs.common import AttentionChoice, Dtype, MeshSpec, Quantization, Reporter
from jora_core.specs.lora import LoraSpec
from jora_core.specs.train import OptimSpec, check_evaluation
from retrieval.settings.context import ContextConfig
from retrieval.settings.task_registry import TaskName

PhaseStage = Literal["finetune-structure", "finetune-task"]
PHASE_STAGES: tuple[PhaseStage, ...] = ("finetune-structure", "finetune-task")
Mode = Literal["choice", "generate", "both"]
# YAML 1.1 reads `off` as false and `on` as true.
Sharing = Annotated[
    Literal["auto", "off"],
    BeforeValidator(lambda value: ("auto" if value else "off") if isinstance(value, bool) else value),
]


class Section(BaseModel):
    """Base of every section: no unknown keys, never changed after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The base model."""

    path: str = Field(
        title="Model folder", description="Hugging Face layout: config.json, safetensors, tokenizer"
    )
    dtype: Dtype = Field(
        default="float32", title="Weight type", description="Type of the frozen base weights in memory"
    )
    quantization: Quantization = Field(
        default="none",
        title="Quantization",
        description="Frozen projections in fewer bits: int8 or nf4; an export merges into the whole weights",
    )
    attention: AttentionChoice = Field(
        default="auto",
        title="Attention",
        description="auto: cuDNN's where it applies (NVIDIA, bfloat16), else our own; blockwise: our own",
    )


class PhaseConfig(Section):
    """One phase of fine-tuning; the second goes on from the first one's adapter."""

    stage: PhaseStage = Field(title="Stage", description="Which of the two fine-tuning stages this is")
    tasks: list[TaskName] = Field(min_length=1, title="Tasks", description="Which records it trains on")
    lora: LoraSpec = Field(
        default_factory=lambda: LoraSpec.model_validate({}),
        title="LoRA",
        description="Adapter shape; the second phase takes the first one's",
    )
    optim: OptimSpec = Field(
        default_factory=lambda: OptimSpec.model_validate({}),
        title="Optimizer",
        description="AdamW and its schedule",
    )
    max_steps: int | None = Field(
        default=None, ge=1, title="Steps", description="Optimizer steps; or give n_epochs"
    )
    n_epochs: float | None = Field(
        default=None, gt=0, title="Epochs", description="Passes over the records; or max_steps"
    )
    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens of prompt and answer"
    )
    tokens_per_batch: int = Field(
        default=8192,
        ge=8,
        title="Tokens of a microbatch",
        description="Padded tokens computed at once; bounds the memory",
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, title="Accumulation", description="Microbatches of one optimizer step"
    )
    max_records: int | None = Field(
        default=None, ge=1, title="Most records", description="Train on at most this many"
    )
    sharing: Sharing = Field(
        default="auto",
        title="Shared context",
        description="Compute once what examples of a context begin with",
    )
    remat: Literal["none", "dots", "attention", "full", "offload"] = Field(
        default="dots",
        title="Recompute",
        description="In the backward pass: none; dots: all but matrix products; attention: the MLP as well; "
        "full: all but two residuals a layer (a third more time); offload: full, those on the host",
    )
    curriculum: Literal["none", "length"] = Field(
        default="none", title="Curriculum", description="length: short examples first during the first epoch"
    )
    validation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Validation share",
        description="Share of training contexts kept for a validation loss",
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
    alpaca_mix: float = Field(
        default=0.0,
        ge=0,
        title="General instructions",
        description="Instructions of another kind to mix in, as a share of the training records",
    )
    alpaca_path: str | None = Field(
        default=None,
        title="Instruction file",
        description="Alpaca records to draw the mix from; a small built-in set if empty",
    )
    report_to: list[Reporter] = Field(
        default=[],
        title="Report to",
        description="Curves for TensorBoard or Weights & Biases; each needs the extra of its name",
    )
    checkpoint_every: int = Field(
        default=100, ge=1, title="Checkpoint every", description="Steps lost at most by a kill"
    )

    @model_validator(mode="after")
    def _consistent(self) -> PhaseConfig:
        if (self.max_steps is None) == (self.n_epochs is None):
            raise ValueError("give exactly one of max_steps and n_epochs")
        if self.max_seq_len > self.tokens_per_batch:
            longest, budget = self.max_seq_len, self.tokens_per_batch
            raise ValueError(f"tokens_per_batch ({budget}) must be at least max_seq_len ({longest})")
        if self.alpaca_path is not None and self.alpaca_mix == 0:
            raise ValueError("alpaca_path is given, but alpaca_mix is 0; give the share to mix in")
        check_evaluation(
            self.evaluate_every, self.early_stopping_patience, self.keep_best, self.validation_share
        )
        return self


class EvaluateConfig(Section):
    """How the held-out records are answered and scored. A task without records in the context is left out."""

    mode: Mode = Field(
        default="choice", title="Mode", description="Choose among the valid answers, write freely, or both"
    )
    sharing: Sharing = Field(
        default="auto", title="Shared context", description="Read once what records of a context begin with"
    )
    max_records: int | None = Field(
        default=None,
        ge=0,
        title="Most thread records",
        description="Held-out replies to score; empty: all, 0: none",
    )
    tables_max_records: int = Field(
        default=0,
        ge=0,
        title="Most table records",
        description="Held-out table questions to answer freely; 0: none",
    )
    qa_max_records: int = Field(
        default=0,
        ge=0,
        title="Most document records",
        description="Held-out document questions to answer freely; 0: none",
    )
    bootstrap_samples: int = Field(
        default=1000,
        ge=10,
        title="Bootstrap samples",
        description="Resamplings behind each interval, by thread",
    )
    max_seq_len: int = Field(
        default=2000, ge=8, title="Longest example", description="Tokens of prompt and answer"
    )
    tokens_per_batch: int = Field(
        default=8192, ge=8, title="Tokens of a batch", description="Padded tokens computed at once"
    )
    max_new_tokens: int = Field(
        default=32, ge=1, title="Longest answer", description="Tokens written at most"
    )

    def most_records(self, task: str) -> int | None:
        """Return how many held-out records of a task are scored at most, None for all.

        A task without a key of its own goes by the general one.
        """
        return getattr(self, f"{task}_max_records", self.max_records)


class ExportConfig(Section):
    """What the exported model looks like."""

    dtype: Dtype | None = Field(
        default=None, title="Weight type", description="Of the merged weights; empty: as the base"
    )
    max_shard_size: int = Field(
        default=5_000_000_000,
        ge=1,
        title="Largest weights file",
        description="Bytes; a larger model is written in shards with an index",
    )
    verify: bool = Field(
        default=True,
        title="Verify",
        description="Reload with transformers and peft (where torch is) and compare logits",
    )


class RetryConfig(Section):
    """What happens when a stage fails for a reason that may pass."""

    max_retries: int = Field(default=2, ge=0, title="Retries", description="Further attempts of one stage")
    delay_seconds: float = Field(
        default=10, ge=0, title="Delay", description="Before the first retry; doubles each time"
    )
    jitter: float = Field(default=0.5, ge=0, title="Jitter", description="Random share added to each delay")


class ScheduleConfig(Section):
    """When `jora serve` starts the pipeline by itself."""

    cron: str | None = Field(
        default=None, title="Cron", description="Five fields, for example '0 2 * * *'; empty: never"
    )
    timezone: str = Field(
        default="UTC", title="Time zone", description="IANA name that the cron fields count in"
    )


class PipelineConfig(Section):
    """From raw corpora to an exported model."""

    root: str = Field(default=".", title="Root", description="Folder that relative paths count from")
    store: str = Field(
        default="runs", title="Store", description="Folder of the artifacts, from the working directory"
    )
    seed: int = Field(
        default=0, ge=0, title="Seed", description="Decides splits, order, dropout and new adapters"
    )
    model: ModelConfig = Field(title="Base model", description="What is fine-tuned")
    context: ContextConfig = Field(title="Context", description="Corpora, retrieval and records")
    phases: list[PhaseConfig] = Field(
        min_length=1, max_length=2, title="Phases", description="Structure first, then the task itself"
    )
    mesh: MeshSpec = Field(
        default_factory=lambda: MeshSpec.model_validate({}),
        title="Mesh",
        description="Devices and their axes",
    )
    evaluate: EvaluateConfig = Field(
        default_factory=EvaluateConfig,
        title="Evaluation",
        description="Held-out scoring",
    )
    export: ExportConfig = Field(
        default_factory=ExportConfig,
        title="Export",
        description="The merged model",
    )
    retries: RetryConfig = Field(
        default_factory=RetryConfig,
        title="Retries",
        description="Of a failed stage",
    )
    schedule: ScheduleConfig = Field(
        default_factory=ScheduleConfig,
        title="Schedule",
        description="Of `jora serve`",
    )

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, raw: Any) -> Any:
        """One seed for everything, the model's own tokenizer, one adapter shape for both phases, unless said
        otherwise.
        """
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        if isinstance(raw.get("context"), dict):
            context = {"seed": raw.get("seed", 0), **raw["context"]}
            if context.get("tokenizer") is None and isinstance(raw.get("model"), dict):
                context["tokenizer"] = raw["model"].get("path")
            raw["context"] = context
        phases = raw.get("phases")
        if isinstance(phases, list) and len(phases) == 2 and all(isinstance(phase, dict) for phase in phases):
            shape = {"lora": phases[0]["lora"]} if "lora" in phases[0] else {}
            raw["phases"] = [phases[0], {**shape, **phases[1]}]
        return raw

    @model_validator(mode="after")
    def _consistent(self) -> PipelineConfig:
        stages = [phase.stage for phase in self.phases]
        if stages not in (list(PHASE_STAGES), *([stage] for stage in PHASE_STAGES)):
            raise ValueError(
                f"phases must be {' then '.join(PHASE_STAGES)}, or one of them; got {', '.join(stages)}"
            )
        if self.phases[-1].lora != self.phases[0].lora:
            raise ValueError(
                "phases.1.lora must equal phases.0.lora: the second phase continues the first's adapter"
            )
        for index, phase in enumerate(self.phases):
            missing = [task for task in phase.tasks if task not in self.context.tasks]
            if missing:
                raise ValueError(
                    f"phases.{index}.tasks names {missing[0]}, but context.{missing[0]} is not given"
                )
        return self

    def resolved(self) -> PipelineConfig:
        """Return the same configuration with absolute paths; what `load_config` returns is already so.

        Raises:
            InputError: a path names an environment variable that is not set.
        """
        root = Path(self.root).resolve()
        raw = resolve_paths({**self.model_dump(mode="json"), "root": str(root)}, root, "config")
        return PipelineConfig.model_validate(raw)
