"""The command `jora init`, which starts a project."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

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


def init(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the project; made if it is new.")],
    sample: Annotated[
        bool, typer.Option("--sample", help="With the embedded sample: corpora, a tiny model, an embedder.")
    ] = False,
) -> None:
    """Start a project: write a commented configuration.

    Writes DIR/jora.yaml, which `jora run` and the other commands read when they start in DIR. With --sample
    the project is complete, and `jora run` needs about three minutes on two CPU cores. Existing files are
    never overwritten.

    \b
    Examples:
      jora init my-project
      jora init demo --sample && cd demo && jora run
    """
    # As a path, an empty text would be the working directory.
    if not folder.strip():
        raise InputError("DIR is empty; give a folder, or . for the working directory")
    config = start_project(Path(folder), sample)
    print(f"wrote {config}")
    change = "" if Path(folder).resolve() == Path.cwd() else f"cd {folder} && "
    print(f"next: {change}jora plan" if sample else f"next: edit it, then {change}jora plan")


def start_project(folder: Path, sample: bool) -> Path:
    """Write the files of a new project; return the path of its configuration.

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
    with one_line_os_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for target, source in copies.items():
            shutil.copytree(source, target)
        # Last, so that an interrupted copy leaves no configuration, which would seem to work.
        write_bytes(config, text.encode("utf-8"))
    # The configuration must be readable: a broken template fails here, not at the user's first run.
    load_config(config)
    return config
