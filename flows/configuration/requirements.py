"""What a run needs beyond valid settings: packages, an embedder, a mesh that fits, held-out records.

Each check reads settings and small files only, so that `jora plan` can refuse at once what a run would refuse
after hours. A check of devices is in :mod:`flows.children.devices`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.configuration.evaluated_systems import VARIANTS, is_own, named_adapter
from flows.configuration.gates import BASE, BOTH_PHASES, FIRST_PHASE, PREVIOUS
from flows.configuration.prompts import prompt_source
from flows.configuration.schema import PipelineConfig
from jora_core.base.errors import InputError
from jora_core.specs.common import REPORTER_PACKAGES
from jora_core.specs.prompts.jinja_template import check_template
from jora_core.specs.prompts.source import check_format
from retrieval.prompts.answer_styles import TEMPLATE_FIELDS
from retrieval.readers.documents.documents import tells_instructions
from retrieval.settings.document_layouts import DOCUMENT_LAYOUTS, TEXT_SUFFIXES
from retrieval.settings.task_registry import TASKS
from retrieval.settings.tasks import QaTask, TaskSettings
from retrieval.tasks.qa.inputs import document_files, question_files

# Packages of the optional parts, by extra.
_DASK = ("prefect_dask", "distributed")


@dataclass(frozen=True)
class Problem:
    """Something that a run needs and does not have.

    Attributes:
        subject: what the problem is about, a short name for `jora doctor`.
        message: one line with the dotted key, what is wrong, and how to fix it.
        fatal: whether a run would be refused; else the results may be worse than expected.
    """

    subject: str
    message: str
    fatal: bool = True


def problems(config: PipelineConfig) -> Iterator[Problem]:
    """Yield everything that a run of a configuration would miss, the fatal problems first.

    Args:
        config: a checked configuration with absolute paths.
    """
    yield from _packages(config)
    yield from _upload(config)
    yield from _prompt(config)
    yield from _retrieval(config)
    yield from _evaluation(config)
    yield from _systems(config)
    yield from _gates(config)
    model = _model_config(Path(config.model.path))
    if model:
        yield from _mesh(config, model)
        yield from _positions(config, model)


def require(config: PipelineConfig, source: str, overridden: Collection[str] = ()) -> list[str]:
    """Refuse a configuration that a run would refuse, and return warnings.

    Args:
        config: a checked configuration with absolute paths.
        source: name of the configuration's file, for errors.
        overridden: dotted keys that `--set` has changed. A problem of such a key names `--set`.

    Returns:
        One line for each problem that does not stop a run.

    Raises:
        InputError: the first fatal problem.
    """
    found = list(problems(config))
    lines = [
        f"{'--set' if problem.message.partition(':')[0] in overridden else source}: {problem.message}"
        for problem in found
    ]
    for problem, line in zip(found, lines, strict=True):
        if problem.fatal:
            raise InputError(line)
    return lines


def _packages(config: PipelineConfig) -> Iterator[Problem]:
    for number, phase in enumerate(config.phases):
        for name in phase.report_to:
            if find_spec(REPORTER_PACKAGES[name]) is None:
                yield Problem(
                    name,
                    f"phases.{number}.report_to: {name} needs the package {REPORTER_PACKAGES[name]}; run "
                    f"`pip install 'jora-raft[{name}]'`, or leave {name} out",
                )
    missing = [name for name in _DASK if find_spec(name) is None]
    if config.context.backend == "dask" and missing:
        yield Problem(
            "dask",
            f"context.backend: dask needs the package {missing[0]}; run `pip install 'jora-raft[scale]'`, or "
            "set it to threads",
        )


def _upload(config: PipelineConfig) -> Iterator[Problem]:
    target = config.export.push_to
    if target is not None and not os.environ.get("HF_TOKEN"):
        yield Problem(
            "upload",
            f"export.push_to: to upload to {target}, set HF_TOKEN to a token that may write there, "
            "or leave push_to out",
        )
    if target is not None and os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield Problem(
            "upload", "export.push_to: HF_HUB_OFFLINE forbids the upload; unset it, or leave push_to out"
        )


def _prompt(config: PipelineConfig) -> Iterator[Problem]:
    try:
        source = prompt_source(config)
        if source is None:
            return
        if source.kind == "jinja":
            check_template(source.text, source.origin)
        else:
            check_format(source.text, source.origin)
    except InputError as error:
        yield Problem("prompt template", str(error))


def _retrieval(config: PipelineConfig) -> Iterator[Problem]:
    for name, task in config.context.tasks.items():
        if "dense" in task.fused_legs and not config.context.embedder and not _without_search(task):
            rest = ", ".join(leg for leg in task.fused_legs if leg != "dense") or "bm25"
            default = "" if "legs" in task.model_fields_set else " (a default leg)"
            yield Problem(
                "embedder",
                f"context.{name}.legs: the leg dense{default} needs context.embedder; give a "
                f"sentence-transformers model, or set context.{name}.legs to [{rest}]",
            )
        if isinstance(task, QaTask) and (why := _without_questions(task)):
            yield Problem("questions", f"context.qa.questions: {why}")
        template = getattr(task, "answer_template", None)
        if template is not None:
            wrong = _template_error(template)
            if wrong:
                yield Problem("answer template", f"context.{name}.answer_template{wrong}")


def _without_questions(task: QaTask) -> str | None:
    """Return why a task will find no questions, as far as names and sizes of its files tell; None else."""
    with suppress(InputError):  # the error about a file comes from the stage that reads it
        files = question_files(task)
        # A teacher makes them, or has made them.
        if task.has_made_questions:
            return None
        if task.questions is None and all(file.path.suffix.lower() in TEXT_SUFFIXES for file in files):
            return (
                f"nothing is named, and text files such as {files[0].name} hold no questions; name a "
                "file with a question a row"
            )
        if task.questions is not None and not any(file.path.stat().st_size for file in files):
            return f"{files[0].path} is empty; expected a question a row"
    return None


def _without_search(task: TaskSettings) -> bool:
    """Whether a task reads instructions with answers, for which no document is searched."""
    if not isinstance(task, QaTask):
        return False
    if task.format != "auto":
        return DOCUMENT_LAYOUTS[task.format].instructions
    if task.questions is not None or task.has_made_questions:
        return False
    try:
        return tells_instructions(document_files(task)[0])
    except InputError:
        return False  # the error about the file comes from the stage that reads it


def _template_error(source: str) -> str | None:
    """Return what is wrong with a Jinja template of answers, with its line; None for a usable template."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        tree = ImmutableSandboxedEnvironment().parse(source)
        unknown = sorted(meta.find_undeclared_variables(tree) - set(TEMPLATE_FIELDS))
        # Unknown filters and tests are found when the template is compiled.
        ImmutableSandboxedEnvironment().from_string(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        return f"{f', line {line}' if line else ''}: {error.message}; correct the template"
    if unknown:
        return f": unknown field {unknown[0]}; known fields are {', '.join(TEMPLATE_FIELDS)}"
    return None


def _evaluation(config: PipelineConfig) -> Iterator[Problem]:
    tasks = config.context.tasks
    scored = [name for name in tasks if config.evaluate.most_records(name) != 0]
    if not scored:
        keys = [
            f"evaluate.{name}_max_records"
            if hasattr(config.evaluate, f"{name}_max_records")
            else "evaluate.max_records"
            for name in tasks
        ]
        yield Problem("evaluation", f"{keys[0]}: nothing would be scored; raise it above 0")
    for name in scored:
        # With a share of 0, only a test source gives held-out records.
        if config.context.test_share == 0 and getattr(tasks[name], "test_source", None) is None:
            yield Problem(
                "held-out records",
                f"context.test_share: with 0, {name} has no held-out records to score; raise it (such as 0.1)"
                + (
                    f", or give context.{name}.test_source"
                    if "test_source" in type(tasks[name]).model_fields
                    else ""
                ),
            )


def _models(config: PipelineConfig) -> tuple[str, ...]:
    """Return the names of the evaluated models."""
    own = (BASE, *(FIRST_PHASE, BOTH_PHASES)[: len(config.phases)], *VARIANTS)
    others = (named_adapter(entry)[0] for entry in config.evaluate.systems if not is_own(entry))
    return (*filter(config.evaluate.scores, own), *others)


def _systems(config: PipelineConfig) -> Iterator[Problem]:
    if BOTH_PHASES in config.evaluate.systems and len(config.phases) < 2:
        yield Problem(
            "systems",
            f"evaluate.systems: {BOTH_PHASES} needs two phases; with one, the model is {FIRST_PHASE}",
        )
    trained = (FIRST_PHASE, BOTH_PHASES)[len(config.phases) - 1]
    if config.evaluate.combine_records and not config.evaluate.scores(trained):
        yield Problem(
            "systems", f"evaluate.systems: combine_records weighs {trained}; name it too, or set 0 records"
        )


def _gates(config: PipelineConfig) -> Iterator[Problem]:
    for index, gate in enumerate(config.gates):
        task, _, measure = gate.metric.partition(".")
        scored = [name for name in config.context.tasks if config.evaluate.most_records(name) != 0]
        if task not in scored:
            yield Problem(
                "gates", f"gates.{index}.metric: {task} is not evaluated; expected one of {', '.join(scored)}"
            )
        elif measure not in (
            known := (*TASKS[task].facts.measures, *(pooled := TASKS[task].facts.pooled_measures))
        ):
            names = ", ".join(f"{task}.{name}" for name in known)
            yield Problem("gates", f"gates.{index}.metric: no measure {gate.metric}; expected one of {names}")
        elif measure in pooled and gate.rival is not None:
            yield Problem(
                "gates",
                f"gates.{index}: {gate.metric} is counted over all records together, so two systems cannot "
                "be compared record by record; give at_least or at_most",
            )
        else:
            together = ("model_and_learned",) if task == "threads" and config.evaluate.combine_records else ()
            systems = (
                *_models(config),
                *filter(config.evaluate.scores, TASKS[task].facts.baselines),
                *together,
            )
            for field in ("system", "not_worse_than", "better_than"):
                name = getattr(gate, field)
                expected = systems if field == "system" else (PREVIOUS, *systems)
                if name is not None and name not in expected:
                    yield Problem(
                        "gates",
                        f"gates.{index}.{field}: no system {name}; expected one of {', '.join(expected)}",
                    )


def _mesh(config: PipelineConfig, model: dict[str, Any]) -> Iterator[Problem]:
    tensor = config.mesh.tensor
    if tensor == 1:
        return
    for field in ("num_attention_heads", "intermediate_size"):
        size = model.get(field)
        if isinstance(size, int) and size % tensor:
            yield Problem(
                "mesh",
                f"mesh.tensor: {tensor} does not divide {field}={size} of the model; choose a divisor of it",
            )
            return
    heads = model.get("num_key_value_heads")
    if isinstance(heads, int) and heads > 0 and heads % tensor and tensor % heads:
        yield Problem(
            "mesh",
            f"mesh.tensor: {tensor} neither divides num_key_value_heads={heads} of the model nor is a "
            "multiple of it; choose another number",
        )


def _positions(config: PipelineConfig, model: dict[str, Any]) -> Iterator[Problem]:
    positions = model.get("max_position_embeddings")
    if not isinstance(positions, int):
        return
    lengths = {f"phases.{number}": phase.max_seq_len for number, phase in enumerate(config.phases)}
    lengths["evaluate"] = config.evaluate.max_seq_len
    for where, length in lengths.items():
        if length > positions:
            yield Problem(
                "length",
                f"{where}.max_seq_len: {length:,} is more than the model's {positions:,} positions "
                "(max_position_embeddings); longer examples give worse answers, so lower it",
                fatal=False,
            )


def _model_config(folder: Path) -> dict[str, Any] | None:
    """Return the fields of a model's `config.json`; None if it cannot be read, which the stages report."""
    try:
        # `utf-8-sig`: some editors write a byte order mark.
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    # A multimodal model has the fields of its language model in a section of their own.
    nested = fields.get("text_config")
    return {**fields, **nested} if isinstance(nested, dict) else fields
