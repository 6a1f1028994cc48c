"""The command `jora init`, which starts a project."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from flows.configuration.fetched_models import MODELS
from flows.configuration.load import load_config
from flows.configuration.sample import (
    CONFIG_NAME,
    SAMPLE_FOLDERS,
    STARTER_CONFIG,
    sample_config_text,
    sample_data,
)
from flows.engine.errors import one_line_os_errors
from jora_core.base.atomic_files import write_bytes
from jora_core.base.errors import InputError
from retrieval.corpus.remote_sources import HUB_NAME


def init(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the project; made if it is new.")],
    sample: Annotated[bool, typer.Option("--sample")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL"),
    ] = None,
) -> None:
    """Start a project: write a commented configuration.

    Writes DIR/jora.yaml, which `jora run` and the other commands read when they start in DIR. With --sample
    the project is complete, and `jora run` needs about three minutes on two CPU cores. Existing files are
    never overwritten.

    \b
    Examples:
      jora init my-project
      jora init demo --sample && cd demo && jora run
      jora fetch smollm2-135m && jora init my-project --model smollm2-135m

    Args:
        folder: Folder of the project; made if it is new.
        sample: With the embedded sample: corpora, a tiny model, an embedder.
        model: The base model: a folder, a GGUF file, or a name that `jora fetch` knows.
    """
    # As a path, an empty text would be the working directory.
    if not folder.strip():
        raise InputError("DIR is empty; give a folder, or . for the working directory")
    config = start_project(Path(folder), sample, model)
    print(f"wrote {config}")
    change = "" if Path(folder).resolve() == Path.cwd() else f"cd {folder} && "
    print(f"next: {change}jora plan" if sample else f"next: edit it, then {change}jora plan")


def start_project(folder: Path, sample: bool, model: str | None = None) -> Path:
    """Write the files of a new project.

    Args:
        folder: folder of the project, made if missing.
        sample: whether the embedded sample is copied into it.
        model: the base model; None takes the sample's, or a folder that the user makes.

    Returns:
        The path of the configuration.

    Raises:
        InputError: one of the files exists already or cannot be written.
    """
    config = folder / CONFIG_NAME
    copies = {folder / "data" / name: sample_data() / name for name in SAMPLE_FOLDERS} if sample else {}
    # All targets are checked before the first is written.
    for path in (config, *copies):
        if path.exists():
            raise InputError(f"{path} exists already; choose another folder, or remove it first")
    text = sample_config_text() if sample else STARTER_CONFIG.read_text(encoding="utf-8")
    if model is not None:
        text = _with_model(text, model)
    with one_line_os_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for target, source in copies.items():
            shutil.copytree(source, target)
        # Last, so that an interrupted copy leaves no configuration, which would seem to work.
        write_bytes(config, text.encode("utf-8"))
    # The configuration must be readable: a broken template fails here, not at the user's first run.
    load_config(config)
    return config


def _with_model(text: str, model: str) -> str:
    """Return the text of a configuration with another base model."""
    if model not in MODELS and not HUB_NAME.match(model):
        # A path counts from the user's working directory, and one in the file from the project.
        model = str(Path(model).expanduser().resolve())
    # A JSON string is a YAML string, whatever is in the path.
    found, count = re.subn(
        r"^(model:\n(?:[ #].*\n)*?  path: ).*$",
        lambda line: line[1] + json.dumps(model),
        text,
        flags=re.MULTILINE,
    )
    assert count == 1, "the template names its model once"
    return found
