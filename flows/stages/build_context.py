"""The stage `build-context`, which builds retrieval-augmented records and rankings from the corpora.

The records are built in a child process, and written to `records.parquet`, `rankings.parquet` and
`links.parquet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flows.children.build_records_spec import BuildContextSpec
from flows.children.run_child import run_child
from flows.configuration.hub_models import missing_model
from flows.configuration.schema import PipelineConfig
from flows.engine.code_files import stage_sources
from flows.engine.stage import Part, Stage, StageContext, Upstream
from flows.stages.model_conversion import conversion_settings, tokenizer_folder
from flows.teachers.teacher import STAGE as MAKE_QUESTIONS
from flows.teachers.teacher import makes_questions
from jora_core.base.notices import notice
from retrieval.build.inputs import input_files
from retrieval.search.sentence_models import model_folder, models
from retrieval.settings.context import ContextConfig
from retrieval.settings.task_registry import LOADERS, build_modules, task_modules
from retrieval.synthesis.question_files import QUESTIONS

NAME = "build-context"
RECORDS = "records.parquet"
RANKINGS = "rankings.parquet"
LINKS = "links.parquet"


def _settings(context: ContextConfig) -> dict[str, Any]:
    """Return the `context` section without paths, with each model that has a public name.

    The files of a model that is a local folder are inputs instead.
    """
    settings = context.fingerprint()
    # The fingerprint leaves both models out. The files of a model folder are inputs with digests. For a
    # public name, only the name is known without a download.
    for field, model in models(context).items():
        if model_folder(model, field) is None:
            settings[field] = model
    tokenizer = context.tokenizer if context.counts_tokens else None
    return {"context": settings} | (conversion_settings(Path(tokenizer)) if tokenizer else {})


def _inputs(config: PipelineConfig) -> dict[str, Path]:
    context, model = config.context, Path(config.model.path)
    # The tokenizer is the model's where no other one is given. A missing model is the better error.
    if context.counts_tokens and context.tokenizer == str(model) and not model.exists():
        raise missing_model(model, Path(config.root))
    return dict(input_files(context))


def _parts(config: PipelineConfig) -> dict[str, Part]:
    """Return one part for each task, because a task's records do not depend on the other tasks."""
    found = {}
    for task in config.context.tasks:
        context = config.context.of_task(task)
        found[task] = Part(
            settings=_settings(context),
            inputs=tuple(dict(input_files(context))),
            sources=_task_sources(task),
            upstream=tuple(item.stage for item in questions_upstream(config)) if task == "qa" else (),
        )
    return found


def questions_upstream(config: PipelineConfig) -> tuple[Upstream, ...]:
    """Return the questions of a teacher, if the configuration has one."""
    return (Upstream(MAKE_QUESTIONS, (QUESTIONS,)),) if makes_questions(config) else ()


def with_made_questions(context: ContextConfig, folder: Path) -> ContextConfig:
    """Return settings that read the made questions of an artifact of `make-questions`.

    Args:
        context: settings whose `qa.generate` made them.
        folder: the artifact.
    """
    assert context.qa is not None and context.qa.generate is not None
    changed = {
        "generate": None,
        "synthetic_questions": str(folder / QUESTIONS),
        "synthetic_held_out": context.qa.generate.held_out,
    }
    return context.model_copy(update={"qa": context.qa.model_copy(update=changed)})


def _task_sources(task: str) -> Mapping[str, Path]:
    """Return the code of one task: what is imported, and what the imported modules load by name."""
    entries = ["retrieval.build.build", *task_modules(task)]
    waiting = dict(LOADERS)
    while True:
        found = stage_sources(__file__, *entries)
        reached = [loader for loader in waiting if f"{loader.replace('.', '/')}.py" in found]
        if not reached:
            return found
        for loader in reached:
            entries += waiting.pop(loader)


def part_names(tasks: Iterable[str], split: str, *files: str) -> tuple[str, ...]:
    """Return the names of the digests of some tasks' rows, as in the manifest of the artifact.

    Args:
        tasks: names of the tasks.
        split: "train" or "test".
        files: some of "records", "rankings" and "links".
    """
    return tuple(f"{file}/{task}/{split}" for file in files for task in tasks)


def _part_digests(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each task's rows by `part_names`, from the metrics of the build."""
    return {
        f"{file}/{task}/{split}": digest
        for file, tasks in metrics.get("digests", {}).items()
        for task, splits in tasks.items()
        for split, digest in splits.items()
    }


def _run(context: StageContext) -> dict[str, Any]:
    """Build the records in one child process or in Prefect tasks; both write the same bytes."""
    settings, retries = context.config.context, context.config.retries
    if MAKE_QUESTIONS in context.upstream:
        settings = with_made_questions(settings, context.upstream[MAKE_QUESTIONS])
    # Shared by all runs: embedding takes long, and the texts rarely change. The cache decides no output,
    # so it is set here and is no part of the key.
    if settings.embedding_cache is None:
        settings = settings.model_copy(update={"embedding_cache": str(context.cache_dir / "embeddings")})
    if settings.tokenizer and settings.counts_tokens:
        # That of a GGUF file is read once, and then like that of a model folder.
        folder = tokenizer_folder(Path(settings.tokenizer), context.cache_dir, context.work_dir)
        settings = settings.model_copy(update={"tokenizer": str(folder)})
    if context.build_records is not None:
        found = context.build_records(settings, context.output_dir, context.work_dir, retries)
    else:
        spec = BuildContextSpec(
            context=settings,
            work_dir=context.work_dir / "build",
            records_dir=context.output_dir,
            output_dir=context.work_dir / "specs",
        )
        found = run_child("flows.children.build_records", spec, context.work_dir)
    # Said before a training of hours. Few questions of a small teacher may all be about training documents.
    if MAKE_QUESTIONS in context.upstream and not found["tasks"]["qa"]["records"].get("test"):
        notice(
            "build-context: none of the made questions is about a held-out document, so the stage evaluate "
            "will refuse to score; raise context.test_share, or ask about more chunks"
        )
    return found


BUILD_CONTEXT = Stage(
    name=NAME,
    description="Read the corpora, retrieve, and write the training and held-out records.",
    version=1,
    settings=lambda config: _settings(config.context),
    inputs=_inputs,
    upstream=questions_upstream,
    # The tasks' builders are found by name in a registry and not imported by `retrieval.build`, so the
    # scanner of imports cannot reach them.
    sources=lambda: stage_sources(__file__, "retrieval.build.build", *build_modules()),
    run=_run,
    parts=_parts,
    part_digests=_part_digests,
)
