"""The stage `convert-model`, which checks every tensor of the base model and writes `model.json`.

Of a model folder it makes no copy, because the training core reads safetensors shard by shard. A model in
another layout, such as a GGUF file, becomes a model folder in the artifact, and the later stages read that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.configuration.hub_models import missing_model
from flows.configuration.schema import PipelineConfig
from flows.engine.code_files import stage_sources
from flows.engine.errors import one_line_os_errors
from flows.engine.stage import Stage, StageContext, Upstream
from flows.stages.model_conversion import conversion_settings, convert_and_check
from jora_core.specs.model_files import ConvertSpec
from jora_core.specs.model_sources import source_files, source_kind

NAME = "convert-model"
MODEL_CARD = "model.json"
MODEL_FOLDER = "model"  # in the artifact, of a model that was converted
# Endings of the files in a model folder that decide what the model computes.
SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {
        "model": {"dtype": config.model.dtype, "quantization": config.model.quantization},
        "mesh": config.mesh.model_dump(mode="json"),
        **conversion_settings(Path(config.model.path)),
    }


def upstream(config: PipelineConfig) -> Upstream:
    """Return what the later stages read of this stage's artifact."""
    kind = source_kind(Path(config.model.path))
    return Upstream(NAME, (MODEL_CARD,) if kind == "folder" else (MODEL_CARD, f"{MODEL_FOLDER}/*"))


def base_folder(config: PipelineConfig, artifact: Path) -> Path:
    """Return the folder of the base model: the configured one, or the one in the artifact of this stage."""
    path = Path(config.model.path)
    return path if source_kind(path) == "folder" else artifact / MODEL_FOLDER


def _inputs(config: PipelineConfig) -> Mapping[str, Path]:
    folder = Path(config.model.path)
    if source_kind(folder) != "folder" and folder.exists():
        return source_files(folder)
    # Checked here because the plan calls `inputs`: the error comes before the records are built.
    if not folder.is_dir():
        raise missing_model(folder, Path(config.root))
    with one_line_os_errors("read", folder):
        # Only the folder itself: hubs keep copies in other formats (`original/`, `onnx/`) in subfolders,
        # which no stage reads.
        files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES) and path.is_file())
        files += sorted(folder.glob("additional_chat_templates/*.jinja"))
    # By the name inside the folder: a model that moves to another disk keeps its key.
    return {f"model/{path.relative_to(folder)}": path for path in files}


def _run(context: StageContext) -> dict[str, Any]:
    config = context.config
    path = Path(config.model.path)
    spec = ConvertSpec(
        model=base_folder(config, context.output_dir),
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        mesh=config.mesh,
        output_dir=context.output_dir,
    )
    if spec.model == path:
        return run_child("check_model", spec, context.work_dir)
    return convert_and_check(path, spec.model, spec, context.work_dir)


CONVERT_MODEL = Stage(
    name=NAME,
    description="Check the base model tensor by tensor, or convert it.",
    version=1,
    settings=_settings,
    inputs=_inputs,
    upstream=lambda config: (),
    sources=lambda: stage_sources(__file__, "jora_core.commands.check_model"),
    run=_run,
)
