"""The teacher of a configuration: what decides its text, its key at the server, its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.configuration.hub_models import model_name
from flows.configuration.schema import PipelineConfig
from jora_core.base.digests import file_digest
from jora_core.base.errors import InputError
from jora_core.base.secrets import expand_variables, hide_value
from jora_core.specs.lora import ADAPTER_FILES
from retrieval.settings.synthesis.question_generation import QuestionGeneration

#: Endings of the files in a model folder that decide what the model computes.
_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")
# The stage that asks the teacher. Here, because the stage that reads its questions must not import it.
STAGE = "make-questions"
WHERE = "context.qa.generate.teacher"


def makes_questions(config: PipelineConfig) -> bool:
    """Return whether a teacher makes questions in this configuration."""
    return config.context.qa is not None and config.context.qa.generate is not None


def generation(config: PipelineConfig) -> QuestionGeneration:
    """Return the settings of making questions.

    Raises:
        InputError: the configuration makes none.
    """
    task = config.context.qa
    if task is None or task.generate is None:
        raise InputError(
            "context.qa.generate is not given; add it, with a teacher, to make questions about documents"
        )
    return task.generate


def model_folder(config: PipelineConfig) -> Path:
    """Return the model folder of a local teacher.

    Raises:
        InputError: it is no folder in Hugging Face layout.
    """
    teacher = generation(config).teacher
    folder = Path(teacher.model_folder or config.model.path)
    if not (folder / "config.json").is_file():
        name = (
            f"{WHERE}.model_folder"
            if teacher.model_folder
            else f"{WHERE}.model_folder is empty and model.path"
        )
        raise InputError(
            f"{name}: {folder} is no model folder with a config.json; convert a model with `jora convert "
            "FILE DIR`, and give DIR"
        )
    return folder


def teacher_files(config: PipelineConfig) -> Iterator[tuple[str, Path]]:
    """Yield the files of a local teacher by stable names; none of another one.

    Raises:
        InputError: there is no such model or adapter.
    """
    teacher = generation(config).teacher
    if teacher.kind != "local":
        return
    for path in sorted(model_folder(config).iterdir()):
        if path.name.endswith(_SUFFIXES) and path.is_file():
            yield f"teacher/model/{path.name}", path
    for name in ADAPTER_FILES if teacher.adapter_folder else ():
        yield f"teacher/adapter/{name}", Path(teacher.adapter_folder or "") / name


def teacher_name(config: PipelineConfig) -> str:
    """Return the name of the teacher for files and reports: that at the server, or of the folder."""
    teacher = generation(config).teacher
    return teacher.model or model_name(model_folder(config))


def identity(config: PipelineConfig) -> Mapping[str, Any]:
    """Return what decides the teacher's text: its settings, the seed, and the digests of its files."""
    settings = generation(config)
    files = {name: file_digest(path) for name, path in teacher_files(config)}
    return {**settings.teacher.deciding(), "seed": settings.seed, "files": files}


def key_of(config: PipelineConfig) -> str | None:
    """Return the key of the server, from the environment or a Prefect Secret block; None without one.

    From then on it is masked in all text of this process.

    Raises:
        InputError: there is no such variable or block.
    """
    teacher = generation(config).teacher
    if teacher.api_key_env is not None:
        name = teacher.api_key_env

        def missing(_: str) -> InputError:
            return InputError(f"{WHERE}.api_key_env: environment variable {name} is not set; export it")

        if not os.environ.get(name):
            raise missing(name)
        return expand_variables(f"${{{name}}}", missing)
    if teacher.api_key_block is not None:
        return _block(teacher.api_key_block)
    return None


def _block(name: str) -> str:
    # Here: only this needs Prefect, which takes a second to import.
    from prefect.blocks.system import Secret

    try:
        value = str(Secret.load(name).get())  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # of the server, of the network, and of a block that is missing
        raise InputError(
            f"{WHERE}.api_key_block: no Secret block {name} can be read ({type(error).__name__}); make it in "
            "the web UI of `jora serve` (Blocks, Secret)"
        ) from None
    hide_value(value)
    return value
