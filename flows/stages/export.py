"""`export`: merge the last adapter into the base model, write the PEFT adapter and a model card, prove both.

The proof runs in a process of its own (:mod:`flows.verify_export`), because `transformers` and `peft` bring
torch: both exports are reloaded with them, and their logits are compared with those of the training core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.child import run_child
from flows.config import PipelineConfig
from flows.digests import digest_json
from flows.sources import stage_sources
from flows.stages import context as build_context
from flows.stages import convert, evaluate
from flows.stages.base import Stage, StageContext, Upstream
from flows.stages.finetune import ADAPTER
from jora_core.spec import ExportSpec

NAME = "export"
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {"model": {"dtype": config.model.dtype}, "export": config.export.model_dump(mode="json")}


def _upstream(config: PipelineConfig) -> tuple[Upstream, ...]:
    """Everything before it: what is not merged stands in the model card as the model's origin."""
    return (
        Upstream(build_context.NAME, (build_context.RECORDS,)),
        Upstream(convert.NAME, (convert.MODEL_CARD,)),
        *(Upstream(phase.stage, (ADAPTER,)) for phase in config.phases),
        Upstream(evaluate.NAME, (evaluate.METRICS,)),
    )


def lineage(context: StageContext) -> dict[str, Any]:
    """Where the exported model comes from: per stage its key, settings, and digests of inputs and code."""
    stages = {
        name: {
            "key": manifest["key"],
            "config": manifest["config"],
            "inputs": digest_json({label: item["sha256"] for label, item in manifest["inputs"].items()}),
            "code": digest_json(manifest["code"]),
        }
        for name, manifest in context.manifests.items()
    }
    return {"export": context.key, "stages": stages}


def _run(context: StageContext) -> dict[str, Any]:
    config = context.config
    spec = ExportSpec(
        model=Path(config.model.path),
        adapter=context.upstream[config.phases[-1].stage],
        dtype=config.export.dtype,
        output_dir=context.output_dir,
        verify=config.export.verify,
        lineage=lineage(context),
    )
    return run_child("export", spec, context.work_dir)


EXPORT = Stage(
    name=NAME,
    version=1,
    settings=_settings,
    inputs=lambda config: {},
    upstream=_upstream,
    sources=lambda: stage_sources(__file__, "jora_core.export"),
    run=_run,
)
