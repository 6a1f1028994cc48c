"""The six stages, each one file: what it reads, what it runs, what it writes.

`STAGES` is in the order in which they run. A configuration without one of the fine-tuning phases leaves its
stage out: `stages_of(config)`.
"""

from __future__ import annotations

from collections.abc import Mapping

from flows.configuration.schema import PipelineConfig
from flows.engine.stage import Stage, StageContext, Upstream
from flows.stages.build_context import BUILD_CONTEXT
from flows.stages.convert_model import CONVERT_MODEL
from flows.stages.evaluate import EVALUATE
from flows.stages.export import EXPORT
from flows.stages.finetune import FINETUNE_STRUCTURE, FINETUNE_TASK
from jora_core.base.errors import InputError

STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (BUILD_CONTEXT, CONVERT_MODEL, FINETUNE_STRUCTURE, FINETUNE_TASK, EVALUATE, EXPORT)
}

__all__ = ["STAGES", "Stage", "StageContext", "Upstream", "stage_named", "stages_of"]


def stages_of(config: PipelineConfig, registry: Mapping[str, Stage] = STAGES) -> list[Stage]:
    """The stages that this configuration has, in the order in which they run."""
    return [stage for stage in registry.values() if stage.applies(config)]


def stage_named(name: str, config: PipelineConfig, registry: Mapping[str, Stage] = STAGES) -> Stage:
    """Return the stage called `name`.

    Raises:
        InputError: no such stage, or not in this configuration.
    """
    names = [stage.name for stage in stages_of(config, registry)]
    if name not in names:
        raise InputError(f"no stage {name} in this configuration; its stages are {', '.join(names)}")
    return registry[name]
