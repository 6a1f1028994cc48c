"""The stage `export`, which writes the merged model, the PEFT adapter and a model card, and verifies them.

The verification loads the merged model with `transformers` and the adapter with `peft`, and compares their
logits with those of the training core. It runs in a child process (:mod:`flows.children.verify_export`),
because both libraries import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.children.verify_export import VerifySpec
from flows.configuration.gates import BOTH_PHASES, FIRST_PHASE
from flows.configuration.hub_models import model_name
from flows.configuration.prompts import prompt_settings, prompt_spec
from flows.configuration.schema import PipelineConfig
from flows.engine.code_files import stage_sources
from flows.engine.lineage_file import LINEAGE, render_lineage
from flows.engine.stage import ADAPTER, Stage, StageContext, Upstream
from flows.stages import build_context, check_gates, convert_model
from flows.teachers.teacher import STAGE as MAKE_QUESTIONS
from jora_core.base.digests import json_digest
from jora_core.specs.common import values_of
from jora_core.specs.model_files import ExportSettings, ExportSpec
from retrieval.evaluation.drawn_records import few_contexts_of_tasks

NAME = "export"
# By name: an import of the evaluation for two names would make the code for scoring answers a part of this
# stage's key.
EVALUATE, METRICS = "evaluate", "metrics.json"
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
REFERENCE = "reference.safetensors"


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {
        "model": {"dtype": config.model.dtype},
        "prompt": prompt_settings(config),
        # Where the export is uploaded to is no part of it.
        "export": config.export.model_dump(mode="json", exclude={"push_to"}),
        # Only where there are gates, so that the keys of other exports stay the same.
        **({"ignore_gates": config.ignore_gates} if config.gates else {}),
    }


def _upstream(config: PipelineConfig) -> tuple[Upstream, ...]:
    """Return all stages before the export, because the model card names all of them as the model's origin."""
    return (
        *build_context.questions_upstream(config),
        Upstream(build_context.NAME, (build_context.RECORDS,)),
        convert_model.upstream(config),
        *(Upstream(phase.stage, (ADAPTER,)) for phase in config.phases),
        Upstream(EVALUATE, (METRICS,)),
        *((Upstream(check_gates.NAME, (check_gates.VERDICTS,)),) if config.gates else ()),
    )


def lineage(context: StageContext) -> dict[str, Any]:
    """Return the origin of the exported model: keys, settings, and digests of inputs and code by stage."""
    stages = {
        name: {
            "key": manifest["key"],
            "config": manifest["config"],
            # One digest each: a corpus of a thousand files would fill the model card. The full lists are
            # in the manifests.
            "inputs": json_digest({label: item["sha256"] for label, item in manifest["inputs"].items()}),
            "code": json_digest(manifest["code"]),
        }
        for name, manifest in context.manifests.items()
    }
    origin = {"export": context.key, "prompt": prompt_settings(context.config), "stages": stages}
    if context.config.gates:
        origin["gates_not_met"] = check_gates.failed_gates(context.upstream[check_gates.NAME])
    return origin


def _synthetic(context: StageContext) -> str:
    """Return how much of the training data comes from questions that a model made; "" if none does."""
    task = context.config.context.qa
    if task is None or not task.has_made_questions:
        return ""
    found = context.manifests[build_context.NAME]["metrics"]["tasks"]["qa"]
    made = {split: found["notes"].get(split, {}).get("synthetic", 0) for split in ("train", "test")}
    teacher = context.manifests.get(MAKE_QUESTIONS, {}).get("metrics", {}).get("teacher")
    named = f" (teacher: {teacher})" if teacher else ""
    return (
        f"Of {found['records']['train']:,} training records about documents, "
        f"{made['train']:,} have questions "
        f"and answers that a model made{named}; of {found['records']['test']:,} held-out ones "
        f"{made['test']:,}."
    )


def _measures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of each system in an evaluation, for the model card."""
    return {
        system: {name: score for name, score in scores.items() if isinstance(score, dict) and "low" in score}
        for system, scores in found["systems"].items()
    }


def _run(context: StageContext) -> dict[str, Any]:
    config = context.config
    if config.gates:
        check_gates.require_passed(context.upstream[check_gates.NAME], config)
    found = json.loads((context.upstream[EVALUATE] / METRICS).read_text(encoding="utf-8"))
    spec = ExportSpec(
        model=convert_model.base_folder(config, context.upstream[convert_model.NAME]),
        # The last phase continues the first phase's adapter, so the last adapter contains both trainings.
        adapter=context.upstream[config.phases[-1].stage],
        **values_of(ExportSettings, config.export),
        base_name=model_name(Path(config.model.path)),
        prompt=prompt_spec(config),
        output_dir=context.output_dir,
        verify=config.export.verify,
        lineage=lineage(context),
        measures=_measures(found),
        measure_warnings=few_contexts_of_tasks(found["drawn"]),
        synthetic=_synthetic(context),
        system=BOTH_PHASES if len(config.phases) > 1 else FIRST_PHASE,
    )
    result = run_child("export", spec, context.work_dir)
    # The manifest has the digest of every file, but does not go with an upload of the export.
    files = result.pop("files")
    text = render_lineage(NAME, context.key, files, _upstream(config), context.manifests)
    (context.output_dir / LINEAGE).write_bytes(text)
    if config.export.verify:
        result |= _verify(context, str(result["dtype"]))
    return result


def _verify(context: StageContext, dtype: str) -> dict[str, Any]:
    """Verify the export with `transformers` and `peft`, or record that torch or `peft` is not installed."""
    reference = context.output_dir / REFERENCE
    # `find_spec` looks for the package without importing it: the import of torch is slow and large.
    missing = [name for name in ("torch", "peft") if find_spec(name) is None]
    left_out = {"hf", "peft"} - set(context.config.export.formats)
    if left_out:
        verified: dict[str, Any] = {"reloaded": f"no: export.formats leaves out {min(left_out)}"}
    elif missing:
        verified = {"reloaded": f"no: {missing[0]} is not installed"}
    else:
        spec = VerifySpec(
            base=convert_model.base_folder(context.config, context.upstream[convert_model.NAME]),
            model=context.output_dir / MODEL_FOLDER,
            adapter=context.output_dir / ADAPTER_FOLDER,
            reference=reference,
            # In bfloat16 the merged weights are rounded, but the base with a separate adapter is not, so a
            # difference is no error.
            judge_adapter=dtype == "float32",
            output_dir=context.work_dir,
        )
        # Both folders are local, so the libraries must not ask the hub.
        verified = run_child(
            "flows.children.verify_export", spec, context.work_dir, env={"HF_HUB_OFFLINE": "1"}
        )
    reference.unlink()  # megabytes for a large vocabulary, and not needed any more
    return verified


EXPORT = Stage(
    name=NAME,
    description="Merge the existing adapter into the base model and write both.",
    version=1,
    settings=_settings,
    inputs=lambda config: {},
    upstream=_upstream,
    sources=lambda: stage_sources(
        __file__,
        "jora_core.commands.export",
        "flows.children.verify_export",
        "retrieval.evaluation.drawn_records",
    ),
    run=_run,
)
