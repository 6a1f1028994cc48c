"""The stage `make-questions`, in which a teacher model makes questions about the documents.

A configuration has it only with `context.qa.generate`. What the teacher has answered is in the cache of the
store, by prompt and teacher, so a changed document asks again only for its chunks. With `--force` the stage
checks all answers again and asks only for those that failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.configuration.schema import PipelineConfig
from flows.engine.code_files import stage_sources
from flows.engine.stage import Stage, StageContext
from flows.stages.model_conversion import conversion_settings
from flows.stages.questions.ask_teacher import Teaching
from flows.teachers.teacher import STAGE, generation, makes_questions, teacher_files, teacher_name
from jora_core.base.digests import json_digest
from retrieval.build.inputs import limits_of
from retrieval.corpus.reading_limits import limited_to
from retrieval.corpus.tokenizer_folder import tokenizer_folder
from retrieval.settings.task_registry import LOADERS
from retrieval.tasks.qa.inputs import document_files
from retrieval.text.token_counter import tokenizer_file

# Settings of `context.qa` that decide the chunks and the prompts.
_QA_SETTINGS = {"format", "columns", "split", "chunk_tokens", "chunk_overlap", "answer_style"}


def _settings(config: PipelineConfig) -> dict[str, Any]:
    if not makes_questions(config):
        return {}
    context, settings = config.context, generation(config)
    assert context.qa is not None
    found: dict[str, Any] = {
        "qa": context.qa.model_dump(mode="json", include=_QA_SETTINGS) | {"generate": settings.deciding()},
        # The round trip searches with this index.
        **context.model_dump(mode="json", include={"bm25_backend", "bm25_stemmer", "bm25_diacritics"}),
    }
    if not settings.held_out:
        # They decide which documents are asked about.
        found |= {"seed": context.seed, "test_share": context.test_share}
    tokenizer = context.tokenizer if context.qa.chunk_tokens is not None else None
    return {"context": found} | (conversion_settings(Path(tokenizer)) if tokenizer else {})


def _inputs(config: PipelineConfig) -> Mapping[str, Path]:
    context, settings = config.context, generation(config)
    assert context.qa is not None
    with limited_to(limits_of(context)):
        found = {f"qa.documents/{file.name}": file.path for file in document_files(context.qa)}
    if context.qa.chunk_tokens is not None:
        file = tokenizer_file(tokenizer_folder(context))
        found[f"tokenizer/{file.name}"] = file
    if settings.decisions is not None:
        path = Path(settings.decisions)
        # By its format, not by its name: a moved file is the same input.
        found[f"decisions{path.suffix.lower()}"] = path
    return {**found, **dict(teacher_files(config))}


def _run(context: StageContext) -> dict[str, Any]:
    teaching = Teaching(context.config, context.work_dir / "questions", context.cache_dir)
    teaching.work_dir.mkdir(parents=True, exist_ok=True)
    written = teaching.write_requests()
    asked = teaching.ask()
    made = teaching.write_questions(context.output_dir)
    peaks = [found.pop("peak_memory_bytes") for found in (written, made) if "peak_memory_bytes" in found]
    return {
        "teacher": teacher_name(context.config),
        "documents": written,
        "asked": asked,
        **made,
        "peak_memory_bytes": max(peaks, default=0),
    }


MAKE_QUESTIONS = Stage(
    name=STAGE,
    description="Let a teacher model make questions about the documents, and check them.",
    version=1,
    settings=_settings,
    inputs=_inputs,
    upstream=lambda config: (),
    sources=lambda: stage_sources(
        __file__,
        "retrieval.synthesis.requests",
        "retrieval.synthesis.make_questions",
        # Readers are found by name, so the scanner of imports cannot reach them.
        *(module for name, modules in LOADERS.items() if "documents" in name for module in modules),
    ),
    run=_run,
    applies=makes_questions,
    part_digests=lambda metrics: {"questions": metrics.get("digest", json_digest(None))},
)
