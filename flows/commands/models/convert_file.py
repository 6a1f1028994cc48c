"""Conversion of one base model to a new model folder, outside the store (`jora convert MODEL DIR`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.commands.models.new_folder import workspace_beside
from flows.engine.errors import one_line_os_errors
from flows.stages.model_conversion import convert_and_check
from jora_core.base.atomic_files import fsync_tree
from jora_core.base.errors import InputError
from jora_core.specs.model_files import ConvertSpec
from jora_core.specs.model_sources import META_PARAMS, source_kind


def is_source(path: Path | None) -> bool:
    """Return whether a path is a base model of another layout, and not a configuration."""
    return path is not None and source_kind(path) != "folder"


def convert_file(source: Path, folder: Path) -> dict[str, Any]:
    """Convert a base model to a new model folder, whole or not at all.

    Args:
        source: GGUF file, or folder in Meta's layout.
        folder: new model folder.

    Returns:
        The result of the check of the folder.

    Raises:
        InputError: `folder` exists, or the model cannot be read.
    """
    if not source.exists():
        raise InputError(f"there is no {source}; give a GGUF file, or a folder in Meta's layout")
    if source_kind(source) == "folder":
        raise InputError(
            f"{source} is neither a GGUF file (.gguf) nor a folder with {META_PARAMS} and "
            "consolidated.*.pth; a model folder in Hugging Face layout needs no conversion"
        )
    with workspace_beside(folder) as making:
        spec = ConvertSpec(model=making / "hf", output_dir=making / "check")
        result = convert_and_check(source.resolve(), making / "hf", spec, making / "specs")
        with one_line_os_errors("write", folder):
            fsync_tree(making / "hf")
            (making / "hf").rename(folder)
    return result
