"""The schema of the pipeline's configuration, which `jora run CONFIG` reads and the Prefect form shows.

Relative paths in the file count from `root`. `root` counts from the folder of the file, and is this folder by
default, so a configuration means the same from any working directory. Two kinds of paths count from the
working directory instead: `store`, because its artifacts belong to the user who runs the pipeline, and paths
given with `--set`, because the user types them there. `${NAME}` and `${NAME:-default}` in a path are replaced
by values from the environment.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from flows.configuration.evaluated_systems import VARIANTS, check_systems
from flows.configuration.gates import GateConfig
from flows.configuration.hub_models import with_hub_models
from flows.configuration.path_fields import resolve_paths, with_references
from jora_core.specs.answers import EvaluationSettings, Mode
from jora_core.specs.common import ComputeSettings, MeshSpec, SpecModel
from jora_core.specs.data import BatchingSettings
from jora_core.specs.model_files import ExportSettings
from jora_core.specs.prompts.settings import PromptSpec
from jora_core.specs.train import TrainingSettings
from retrieval.settings.context import ContextConfig
from retrieval.settings.task_registry import TaskName

__all__ = ["Mode", "PipelineConfig"]

PhaseStage = Literal["finetune-structure", "finetune-task"]
PHASE_STAGES: tuple[PhaseStage, ...] = ("finetune-structure", "finetune-task")


# Of each task whose answers are written, which takes longer than choosing one. Enough for an interval of ten
# points.
ANSWERED_RECORDS = 200
# Names of the hub: neither part begins or ends with a sign.
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}", re.ASCII)


# Pydantic lists the fields of the last base first, so the form begins with the folder or the stage.
class ModelFolder(SpecModel):
    """The folder of the base model."""

    path: str = Field(
        title="Model folder",
        description="Hugging Face layout (config.json, safetensors, tokenizer) or Meta's (params.json, "
        "consolidated.*.pth), a GGUF file, the name OWNER/NAME of a model in the Hugging Face cache, or a "
        "name that `jora fetch` knows",
    )
    download: bool = Field(
        default=False,
        title="Download",
        description="Fetch a model that is given by name from the Hugging Face hub; else it must be in the "
        "cache",
    )


class ModelConfig(ComputeSettings, ModelFolder):
    """The base model, with its folder and its compute settings."""


class PhaseRecords(SpecModel):
    """The stage of a fine-tuning phase, and the tasks whose records it trains on."""

    stage: PhaseStage = Field(title="Stage", description="Which of the two fine-tuning stages this is")
    tasks: list[TaskName] = Field(min_length=1, title="Tasks", description="Which records it trains on")


class PhaseConfig(BatchingSettings, TrainingSettings, PhaseRecords):
    """One phase of fine-tuning. The second phase continues the adapter of the first phase."""

    init_adapter: str | None = Field(
        default=None,
        title="First adapter",
        description="PEFT folder that the first phase begins with; a new adapter if empty",
    )
    continue_from: str | None = Field(
        default=None,
        title="Continue from",
        description="Key of a finished training of this phase, which goes on to more steps; empty: none",
    )
    keep_state: bool = Field(
        default=True,
        title="Keep the state",
        description="Keep optimizer and position in the artifact, for continue_from",
    )

    @model_validator(mode="after")
    def _has_its_validation_loss(self) -> PhaseConfig:
        self.check_evaluation(self.validation_share)
        return self


class EvaluateConfig(EvaluationSettings):
    """How the held-out records are answered and scored. Tasks outside the context section are left out."""

    max_records: int | None = Field(
        default=None,
        ge=0,
        title="Most thread records",
        description="Held-out replies to score, drawn by seed in whole contexts; empty: all, 0: none",
    )
    tables_max_records: int = Field(
        default=ANSWERED_RECORDS,
        ge=0,
        title="Most table records",
        description="Held-out table questions to answer freely; 0: none",
    )
    qa_max_records: int = Field(
        default=ANSWERED_RECORDS,
        ge=0,
        title="Most document records",
        description="Held-out document questions to answer freely; 0: none",
    )
    systems: list[str] = Field(
        default=[],
        title="Systems",
        description="What is scored: names such as base, both_phases, previous_post, closed_book, "
        "oracle_only or shuffled, keys of finished trainings, and PEFT folders, also as NAME=FOLDER; empty: "
        "the baselines and the run's own models",
    )
    combine_records: int = Field(
        default=0,
        ge=0,
        title="Unseen comments",
        description="Training comments kept for validation on which the model is weighed against the learned "
        "fusion, to score both together; 0: not together",
    )
    bootstrap_samples: int = Field(
        default=2000,
        ge=10,
        title="Bootstrap samples",
        description="Resamplings behind each interval, of whole threads, tables or documents",
    )

    @field_validator("systems")
    @classmethod
    def _known_systems(cls, value: list[str]) -> list[str]:
        check_systems(value)
        return value

    def scores(self, system: str) -> bool:
        """Return whether a system of the run is scored."""
        return system in self.systems if self.systems else system not in VARIANTS

    def most_records(self, task: str) -> int | None:
        """Return the largest number of held-out records of a task to score; None for all.

        A task without a setting of its own uses `max_records`.
        """
        return getattr(self, f"{task}_max_records", self.max_records)


class ExportConfig(ExportSettings):
    """Settings of the exported model, and whether it is verified."""

    verify: bool = Field(
        default=True,
        title="Verify",
        description="Reload with transformers and peft (where torch is) and compare logits",
    )
    push_to: str | None = Field(
        default=None,
        title="Push to",
        description="OWNER/NAME on the Hugging Face hub, made private if new; HF_TOKEN has the token. Empty: "
        "nothing is uploaded",
    )

    @field_validator("push_to")
    @classmethod
    def _is_repository(cls, value: str | None) -> str | None:
        """Refuse a name that the hub would refuse, after the training."""
        if value is not None and (
            _REPOSITORY.fullmatch(value) is None or "--" in value or ".." in value or value.endswith(".git")
        ):
            raise ValueError(
                f"expected OWNER/NAME of letters, digits, '-', '_' and '.', as in me/my-model, got {value!r}"
            )
        return value


class RetryConfig(SpecModel):
    """Retries of a stage after a failure that may be temporary."""

    max_retries: int = Field(default=2, ge=0, title="Retries", description="Further attempts of one stage")
    delay_seconds: float = Field(
        default=10, ge=0, title="Delay", description="Before the first retry; doubles each time"
    )
    no_progress_seconds: float = Field(
        default=14400,
        ge=0,
        title="Longest silence",
        description="A stage that reports nothing for so many seconds is ended and tried again; 0: never",
    )
    lease_seconds: float = Field(
        default=60,
        gt=0,
        title="Lease",
        description="In a shared store, a machine without a sign of life for so many seconds counts as dead",
    )
    jitter: float = Field(default=0.5, ge=0, title="Jitter", description="Random share added to each delay")


class ScheduleConfig(SpecModel):
    """The schedule on which `jora serve` starts the pipeline."""

    cron: str | None = Field(
        default=None, title="Cron", description="Five fields, for example '0 2 * * *'; empty: never"
    )
    timezone: str = Field(
        default="UTC", title="Time zone", description="IANA name that the cron fields count in"
    )
    watch_minutes: float | None = Field(
        default=None,
        ge=1,
        title="Watch",
        description="Minutes between two looks for changed sources, which start a run; empty: never",
    )
    settle_seconds: float = Field(
        default=60,
        ge=0,
        title="Settle",
        description="Seconds without a change after which a source file counts as complete",
    )


@dataclass(frozen=True)
class ConfigSource:
    """Where a configuration was loaded from.

    Attributes:
        argument: CONFIG as the user gave it; None if the command had no CONFIG.
        file: path of the file that was read.
        overrides: the changes of `--set`.
    """

    argument: str | None
    file: str
    overrides: tuple[str, ...] = ()


def _block_names(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and not all(name.partition("/")):
            raise ValueError(
                f"expected the name of a Prefect block, such as slack-webhook/NAME, got {name!r}"
            )
    return names


# One name, or a list of names.
Blocks = Annotated[list[str], BeforeValidator(_block_names)]


class PipelineConfig(SpecModel):
    """The configuration of a whole pipeline, from raw corpora to an exported model."""

    project: str = Field(
        default="",
        title="Project",
        description="Name in lists and reports; empty: the file's, or for jora.yaml its folder's",
    )
    root: str = Field(default=".", title="Root", description="Folder that relative paths count from")
    store: str = Field(
        default="runs",
        title="Store",
        description="Folder of the artifacts, from the working directory; or a URL that machines share",
    )
    store_cache: str = Field(
        default="runs",
        title="Store cache",
        description="Local folder before a store that is a URL, from the working directory",
    )
    seed: int = Field(
        default=0, ge=0, title="Seed", description="Decides splits, order, dropout and new adapters"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        title="Training seeds",
        description="Each phase is trained once with each, and the evaluation tells the spread; the first "
        "one's model is exported. Empty: the seed alone",
    )
    model: ModelConfig = Field(title="Base model", description="What is fine-tuned")
    prompt: PromptSpec = Field(
        default_factory=PromptSpec,
        title="Prompt",
        description="The frame of all prompts, in training, evaluation, generation and the exported model",
    )
    context: ContextConfig = Field(title="Context", description="Corpora, retrieval and records")
    # A list, not two fields: either phase can be left out, and the order is visible in the file.
    phases: list[PhaseConfig] = Field(
        min_length=1, max_length=2, title="Phases", description="Structure first, then the task itself"
    )
    mesh: MeshSpec = Field(default_factory=MeshSpec, title="Mesh", description="Devices and their axes")
    evaluate: EvaluateConfig = Field(
        default_factory=EvaluateConfig,
        title="Evaluation",
        description="Held-out scoring",
    )
    gates: list[GateConfig] = Field(
        default=[],
        title="Gates",
        description="Conditions on the evaluation; if one is not met, the run fails and nothing is exported",
    )
    ignore_gates: bool = Field(
        default=False,
        title="Ignore the gates",
        description="Export all the same; the exported model's lineage says so",
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
    notify: Blocks = Field(
        default=[],
        title="Notify",
        description="Prefect blocks that tell of finished and failed runs, such as slack-webhook/NAME",
    )
    schedule: ScheduleConfig = Field(
        default_factory=ScheduleConfig,
        title="Schedule",
        description="Of `jora serve`",
    )

    # Not a setting: no part of keys, manifests or forms.
    _source: ConfigSource | None = PrivateAttr(default=None)

    @property
    def training_seed(self) -> int:
        """The seed of the trainings that are exported; splits and draws of records follow `seed`."""
        return self.seeds[0] if self.seeds else self.seed

    @property
    def source(self) -> ConfigSource | None:
        """Where this configuration was loaded from; None if it was made in a program or by a web form."""
        return self._source

    def loaded_from(self, source: ConfigSource | None) -> PipelineConfig:
        """Note where this configuration was loaded from; return it."""
        self._source = source
        return self

    def __eq__(self, other: object) -> bool:
        # Pydantic compares private attributes too, but two files may hold the same configuration.
        return isinstance(other, PipelineConfig) and self.__dict__ == other.__dict__

    # Sections hold lists and mappings, so a configuration has no hash.
    __hash__ = None  # type: ignore[assignment]

    def command(self, *words: str) -> str:
        """Return a `jora` command for this configuration, such as `jora run my.yaml --from evaluate`.

        The words are the command and its options. CONFIG and the changes of `--set` follow the first word.
        """
        source = self._source or ConfigSource(None, "")
        given = [source.argument] if source.argument else []
        given += [word for change in source.overrides for word in ("--set", change)]
        return shlex.join(["jora", *words[:1], *given, *words[1:]])

    @model_serializer(mode="wrap")
    def _with_references(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Keep `${NAME}` in what leaves the process: deployments, parameters of flow runs, files."""
        dumped = dump(self)
        return with_references(dumped) if info.mode == "json" else dumped

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, raw: Any) -> Any:
        """Fill in values that the file leaves out.

        The context takes the seed of the pipeline and the tokenizer of the model. The second phase takes the
        adapter settings of the first phase.
        """
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        if isinstance(raw.get("context"), dict):
            # Values of the section itself come last, so they override the inherited values.
            context = {"seed": raw.get("seed", 0), **raw["context"]}
            if context.get("tokenizer") is None and isinstance(raw.get("model"), dict):
                context["tokenizer"] = raw["model"].get("path")
            raw["context"] = context
        phases = raw.get("phases")
        if isinstance(phases, list) and len(phases) == 2 and all(isinstance(phase, dict) for phase in phases):
            # Before the validation, because afterwards a missing key looks like a default.
            shape = {"lora": phases[0]["lora"]} if "lora" in phases[0] else {}
            raw["phases"] = [phases[0], {**shape, **phases[1]}]
        return raw

    @model_validator(mode="after")
    def _combines_what_is_unseen(self) -> PipelineConfig:
        if not self.evaluate.combine_records:
            return self
        if self.context.threads is None or not self.context.threads.learns_fusion:
            raise ValueError(
                "evaluate.combine_records weighs the model against the learned fusion: set "
                "context.threads.fusion to learned, or leave it out"
            )
        if self.evaluate.mode == "generate" or self.evaluate.max_records == 0:
            raise ValueError(
                "evaluate.combine_records needs the model's log-probabilities of the choices: set "
                "evaluate.mode to choice or both and score thread records, or leave it out"
            )
        seen = [
            phase.stage for phase in self.phases if "threads" in phase.tasks and not phase.validation_share
        ]
        if seen:
            raise ValueError(
                f"evaluate.combine_records needs comments that the model has not seen: give the phase "
                f"{seen[0]} a validation_share"
            )
        return self

    @model_validator(mode="after")
    def _channel_is_scored(self) -> PipelineConfig:
        threads, wanted = self.context.threads, self.evaluate
        if threads is None or threads.direction != "channel" or wanted.max_records == 0:
            return self
        if wanted.mode != "choice":
            raise ValueError(
                f"context.threads.direction: channel scores each post by the comment and writes no answer: "
                f"set evaluate.mode to choice (now {wanted.mode})"
            )
        variants = [name for name in VARIANTS if name in wanted.systems]
        if variants:
            raise ValueError(
                f"evaluate.systems: {variants[0]} changes the posts of a prompt, and with "
                "context.threads.direction: channel a prompt has one post: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _seeds_are_other_trainings(self) -> PipelineConfig:
        twice = next((seed for seed in self.seeds if self.seeds.count(seed) > 1), None)
        if twice is not None:
            raise ValueError(f"seeds has {twice} twice; expected different seeds, such as [0, 1, 2]")
        if len(self.seeds) > 1:
            going_on = [i for i, phase in enumerate(self.phases) if phase.continue_from is not None]
            if going_on:
                raise ValueError(
                    f"phases.{going_on[0]}.continue_from goes on with one training, but seeds asks for "
                    f"{len(self.seeds)}; leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> PipelineConfig:
        stages = [phase.stage for phase in self.phases]
        # The names are the stages' names: another order or a name twice would give two stages one
        # artifact folder.
        if stages not in (list(PHASE_STAGES), *([stage] for stage in PHASE_STAGES)):
            raise ValueError(
                f"phases must be {' then '.join(PHASE_STAGES)}, or one of them; got {', '.join(stages)}"
            )
        if len(self.phases) > 1 and self.phases[1].init_adapter is not None:
            raise ValueError(
                "phases.1.init_adapter: the second phase begins with the first's adapter; give it to phases.0"
            )
        # Rank, targets and scale fix the adapter's tensors; the second phase loads the first one's.
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
        """Return the same configuration with absolute paths; `load_config` already returns absolute paths.

        Raises:
            InputError: a path names an environment variable that is not set.
        """
        root = Path(resolve_paths(self.root, Path(), "config", at=("root",))).resolve()
        # As plain values, because `resolve_paths` finds paths by their dotted keys, as in the file.
        raw = resolve_paths({**self.model_dump(mode="json"), "root": str(root)}, root, "config")
        return PipelineConfig.model_validate(with_hub_models(raw, "config")).loaded_from(self._source)
