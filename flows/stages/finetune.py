"""The stages `finetune-structure` and `finetune-task`, which train the LoRA adapter in a child process.

The second phase continues the first phase's adapter. Checkpoints are in the stage's work folder, which
belongs to one key: a killed run continues from its newest checkpoint, and runs under other keys do not see
the checkpoints. If a microbatch does not fit in memory, the stage halves the microbatch and doubles the
gradient accumulation, so that a step keeps its number of tokens.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from flows.children.run_child import ChildFailed, run_child
from flows.configuration.prompts import prompt_settings, prompt_spec
from flows.configuration.schema import PHASE_STAGES, PhaseConfig, PhaseStage, PipelineConfig
from flows.engine.code_files import stage_sources
from flows.engine.shared.shared_store import open_store
from flows.engine.stage import ADAPTER, CHECKPOINTS, Stage, StageContext, Upstream
from flows.stages import build_context, convert_model
from jora_core.base.digests import sealed_path, whole
from jora_core.base.errors import InputError
from jora_core.specs.common import ComputeSettings, values_of
from jora_core.specs.data import BatchingSettings, DataSpec
from jora_core.specs.lora import ADAPTER_FILES
from jora_core.specs.train import TrainingSettings, TrainSpec

# Sums up the state of a finished training, in its artifact.
STATE_FILE = "training_state/training.json"
TOKENS = "tokens"  # folder of token ids in the cache
# Settings that are not in the key. The first two do not change the trained weights. The file of general
# instructions is an input, by its content.
# Likewise the adapter that the first phase begins with, and the training that is continued.
_NO_SETTING = {"checkpoint_every", "report_to", "alpaca_path", "init_adapter", "continue_from", "keep_state"}
_DESCRIPTIONS: dict[PhaseStage, str] = {
    "finetune-structure": "Train the first phase's adapter on the existing records.",
    "finetune-task": "Train on from the first phase's existing adapter.",
}
# File in the work folder with the size of the microbatch that fitted. The next attempt begins with it.
MICROBATCH = "microbatch.json"

logger = logging.getLogger("jora.finetune")


def phase_index(config: PipelineConfig, stage: str) -> int | None:
    """Return the index of a fine-tuning stage in the configured phases; None for a stage without a phase."""
    return next((index for index, phase in enumerate(config.phases) if phase.stage == stage), None)


def _phase(config: PipelineConfig, stage: str) -> tuple[int, PhaseConfig]:
    index = phase_index(config, stage)
    assert index is not None, f"{stage} is not part of this configuration"
    return index, config.phases[index]


def _settings(config: PipelineConfig, stage: PhaseStage) -> dict[str, Any]:
    index, phase = _phase(config, stage)
    return {
        "seed": config.training_seed,
        "model": config.model.model_dump(mode="json", exclude={"path"}),
        "mesh": config.mesh.model_dump(mode="json"),
        "prompt": prompt_settings(config),
        # By position, as in the configuration: the plan can then name `phases.1.optim.learning_rate`,
        # which `--set` takes.
        "phases": {str(index): phase.model_dump(mode="json", exclude=_NO_SETTING)},
    }


def _inputs(config: PipelineConfig, stage: PhaseStage) -> dict[str, Path]:
    _, phase = _phase(config, stage)
    found = {} if phase.alpaca_path is None else {"general instructions": phase.alpaca_path}
    if phase.init_adapter is not None:
        folder = Path(phase.init_adapter)
        found |= {f"init_adapter/{name}": folder / name for name in ADAPTER_FILES}
    if phase.continue_from is not None:
        # The one file that names and sums up the state. It has digests of the rest, which are checked.
        found["continue_from/training.json"] = continued_folder(config, stage) / STATE_FILE
    return found


def continued_folder(config: PipelineConfig, stage: PhaseStage) -> Path:
    """Return the folder of the finished training that a phase continues.

    Raises:
        InputError: the store has no such training, or several that begin with the key.
    """
    index, phase = _phase(config, stage)
    given = phase.continue_from
    assert given is not None
    where = f"phases.{index}.continue_from: {given}"
    root = open_store(config).root / stage
    found = sorted(path for path in root.glob(f"{given}*") if path.is_dir()) if given.isalnum() else []
    if len(found) != 1:
        known = sorted(path.name[:12] for path in root.glob("*") if path.is_dir())
        what = f"several trainings of {stage} begin so" if found else f"no finished training of {stage}"
        raise InputError(
            f"{where}: {what} in the store; expected the beginning of a key: {', '.join(known) or 'none yet'}"
        )
    if not (found[0] / STATE_FILE).is_file():
        raise InputError(f"{where}: this training kept no state; set keep_state and train it again")
    return found[0]


def _upstream(config: PipelineConfig, stage: PhaseStage) -> tuple[Upstream, ...]:
    index, phase = _phase(config, stage)
    # Only the weights: the first phase's log and times differ from run to run and do not change the training.
    earlier = tuple(Upstream(phase.stage, (ADAPTER,)) for phase in config.phases[:index])
    return (
        # Only the training records of its own tasks: records of other tasks change nothing of the training.
        Upstream(
            build_context.NAME,
            build_context.part_names(phase.tasks, "train", "records"),
            parts=tuple(phase.tasks),
        ),
        convert_model.upstream(config),
        *earlier,
    )


def data_spec(config: PipelineConfig, phase: PhaseConfig, records: Path, cache_dir: Path) -> DataSpec:
    """Return the spec of the records that one phase trains on, and of their batches.

    Args:
        config: the configuration, for the template of the prompts.
        phase: the phase's settings.
        records: Parquet file of all records.
        cache_dir: cache folder of the store; a folder in it keeps the token ids.
    """
    return DataSpec(
        records=records,
        tasks=list(phase.tasks),
        cache_dir=cache_dir / TOKENS,
        prompt=prompt_spec(config),
        **values_of(BatchingSettings, phase),
    )


def train_spec(context: StageContext, stage: PhaseStage) -> TrainSpec:
    """Return the spec for the child process that trains one phase."""
    config = context.config
    index, phase = _phase(config, stage)
    return TrainSpec(
        model=convert_model.base_folder(config, context.upstream[convert_model.NAME]),
        adapter=context.upstream[config.phases[index - 1].stage] if index else _first_adapter(phase),
        continue_from=None if phase.continue_from is None else continued_folder(config, stage),
        keep_state=phase.keep_state,
        data=data_spec(
            config, phase, context.upstream[build_context.NAME] / build_context.RECORDS, context.cache_dir
        ),
        mesh=config.mesh,
        seed=config.training_seed,
        # Not in the artifact: a run that continues after a kill has a new artifact, but its curves continue.
        report_dir=context.cache_dir / "reports" / stage,
        report_tags=_lineage_tags(context, stage),
        output_dir=context.output_dir,
        checkpoint_dir=context.work_dir / CHECKPOINTS,
        compilation_cache_dir=context.cache_dir / "jax",
        **values_of(ComputeSettings, config.model),
        **values_of(TrainingSettings, phase),
    )


def _lineage_tags(context: StageContext, stage: PhaseStage) -> dict[str, str]:
    """Return the keys of a training and of what it was made from, by which `jora lineage` finds the rest."""
    upstream = {f"jora.upstream.{name}": str(item["key"]) for name, item in context.manifests.items()}
    own = {"jora.project": context.config.project, "jora.stage": stage, "jora.key": context.key}
    return own | upstream


def _first_adapter(phase: PhaseConfig) -> Path | None:
    return None if phase.init_adapter is None else Path(phase.init_adapter)


def halved(spec: TrainSpec) -> TrainSpec | None:
    """Return the spec with microbatches of half as many tokens, and at least as many tokens in a step.

    Returns:
        The changed spec; None if a microbatch already has only one row.
    """
    # A row is the least that a microbatch can hold, and a row may be as long as `max_seq_len`.
    tokens = max(spec.data.tokens_per_batch // 2, spec.data.max_seq_len)
    if tokens == spec.data.tokens_per_batch:
        return None
    # Rounded up: if the division has a remainder, a step has a few more tokens than configured, never
    # fewer.
    steps = math.ceil(spec.gradient_accumulation_steps * spec.data.tokens_per_batch / tokens)
    return _with_microbatch(spec, {"tokens_per_batch": tokens, "gradient_accumulation_steps": steps})


def _microbatch(spec: TrainSpec) -> dict[str, int]:
    return {
        "tokens_per_batch": spec.data.tokens_per_batch,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
    }


def _with_microbatch(spec: TrainSpec, size: dict[str, int]) -> TrainSpec:
    data = spec.data.model_copy(update={"tokens_per_batch": size["tokens_per_batch"]})
    steps = size["gradient_accumulation_steps"]
    return spec.model_copy(update={"data": data, "gradient_accumulation_steps": steps})


def train_phase(context: StageContext, stage: PhaseStage) -> dict[str, Any]:
    """Train one phase in a child process, with smaller microbatches after an out-of-memory error.

    Raises:
        ChildFailed: the child fails otherwise, or one row does not fit in memory.
    """
    spec = train_spec(context, stage)
    # Without the remembered size, each retry of the stage would first run out of memory again.
    remembered = context.work_dir / MICROBATCH
    if whole(remembered):
        spec = _with_microbatch(spec, json.loads(remembered.read_text()))
    else:
        remembered.unlink(missing_ok=True)  # a damaged one, which is told once
    while True:
        try:
            return run_child("train", spec, context.work_dir) | {"microbatch": _microbatch(spec)}
        except ChildFailed as failure:
            smaller = halved(spec) if failure.out_of_memory else None
            if smaller is None:
                raise
        spec = smaller
        logger.warning("%s: out of memory; continuing with %s", stage, _microbatch(spec))
        # Atomic, and before the attempt: after a kill, the next attempt begins with the smaller size.
        with sealed_path(remembered) as temporary:
            temporary.write_text(json.dumps(_microbatch(spec)))


def _stage(name: PhaseStage) -> Stage:
    return Stage(
        name=name,
        description=_DESCRIPTIONS[name],
        version=1,
        settings=lambda config: _settings(config, name),
        inputs=lambda config: _inputs(config, name),
        upstream=lambda config: _upstream(config, name),
        sources=lambda: stage_sources(__file__, "jora_core.commands.train"),
        run=lambda context: train_phase(context, name),
        applies=lambda config: phase_index(config, name) is not None,
    )


FINETUNE_STRUCTURE, FINETUNE_TASK = (_stage(name) for name in PHASE_STAGES)
