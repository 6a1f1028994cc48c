"""`evaluate`: answer the held-out records with the base model and after each phase, and score the answers."""

from __future__ import annotations

from typing import Any

from flows.sources import stage_sources
from flows.stages import context as build_context
from flows.stages import convert
from flows.stages.base import Stage, StageContext, Upstream
from flows.stages.finetune import ADAPTER

NAME = "evaluate"
METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"


def _run(context: StageContext) -> dict[str, Any]:
    return {}


EVALUATE = Stage(
    name=NAME,
    version=1,
    settings=lambda config: {"evaluate": config.evaluate.model_dump(mode="json")},
    inputs=lambda config: {},
    upstream=lambda config: (
        Upstream(build_context.NAME, (build_context.RECORDS, build_context.RANKINGS)),
        Upstream(convert.NAME, (convert.MODEL_CARD,)),
        *(Upstream(phase.stage, (ADAPTER,)) for phase in config.phases),
    ),
    sources=lambda: stage_sources(__file__, "jora_core.predict", "retrieval.scoring"),
    run=_run,
)
