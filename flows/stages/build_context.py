"""The stage `build-context`, which builds retrieval-augmented records and rankings from the corpora.

The records are built in a child process, and written to `records.parquet` and `rankings.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.children.build_records_spec import BuildContextSpec
from flows.children.run_child import run_child
from flows.configuration.schema import PipelineConfig
from flows.engine.code_files import stage_sources
from flows.engine.stage import Stage, StageContext
from retrieval.build.inputs import input_files
from retrieval.search.sentence_models import model_folder, models
from retrieval.settings.task_registry import build_modules

NAME = "build-context"
RECORDS = "records.parquet"
RANKINGS = "rankings.parquet"


def _settings(config: PipelineConfig) -> dict[str, Any]:
    """Return the `context` section without paths, with each model that has a public name.

    The files of a model that is a local folder are inputs instead.
    """
    settings = config.context.fingerprint()
    # The fingerprint leaves both models out. The files of a model folder are inputs with digests. For a
    # public name, only the name is known without a download.
    for field, model in models(config.context).items():
        if model_folder(model, field) is None:
            settings[field] = model
    return {"context": settings}


def _inputs(config: PipelineConfig) -> Mapping[str, Path]:
    return dict(input_files(config.context))


def _run(context: StageContext) -> dict[str, Any]:
    """Build the records in one child process or in Prefect tasks; both write the same bytes."""
    settings, retries = context.config.context, context.config.retries
    # Shared by all runs: embedding takes long, and the texts rarely change. The cache decides no output,
    # so it is set here and is no part of the key.
    if settings.embedding_cache is None:
        settings = settings.model_copy(update={"embedding_cache": str(context.cache_dir / "embeddings")})
    if context.build_records is not None:
        return context.build_records(settings, context.output_dir, context.work_dir, retries)
    spec = BuildContextSpec(
        context=settings,
        work_dir=context.work_dir / "build",
        records_dir=context.output_dir,
        output_dir=context.work_dir / "specs",
    )
    return run_child("flows.children.build_records", spec, context.work_dir)


BUILD_CONTEXT = Stage(
    name=NAME,
    description="Read the corpora, retrieve, and write the training and held-out records.",
    version=1,
    settings=_settings,
    inputs=_inputs,
    upstream=lambda config: (),
    # The tasks' builders are found by name in a registry and not imported by `retrieval.build`, so the
    # scanner of imports cannot reach them.
    sources=lambda: stage_sources(__file__, "retrieval.build.build", *build_modules()),
    run=_run,
)
