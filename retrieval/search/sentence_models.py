"""Where a sentence-transformers model lies, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.remote_sources import is_url
from retrieval.corpus.source_files import expand_path
from retrieval.settings.context import ContextConfig


def models(config: ContextConfig) -> dict[str, str]:
    """The configured sentence-transformers models by field."""
    found = {"embedder": config.embedder, "reranker": config.reranker}
    return {field: model for field, model in found.items() if model}


def model_folder(model: str, field: str) -> Path | None:
    """The folder of a sentence-transformers model, or None where it is a public name.

    Raises:
        InputError: the text is a path by its form, and no folder is there.
    """
    path = Path(model if is_url(model) else expand_path(model, field))
    if path.is_dir():
        return path
    looks_like_path = path.is_absolute() or model.startswith((".", "~", "$")) or model.count("/") > 1
    if looks_like_path:
        raise InputError(
            f"{field}: folder {path} does not exist; give a sentence-transformers folder or name"
        )
    return None


def open_model(
    field: str, model: str, marker: str, options: str, make: Callable[[str], Any]
) -> tuple[Any, Path | None]:
    """What `make` loads from a model's folder or by its public name, and the folder.

    Args:
        marker: file that tells the folder of such a model.
        options: what to do about a model that cannot be used.

    Raises:
        InputError: the folder is missing or is none of such a model, or the model cannot be loaded.
    """
    folder = model_folder(model, field)
    if folder is not None and not (folder / marker).is_file():
        raise InputError(f"{field}: {folder} holds no {marker}, so it is no such model; {options}")
    try:
        return make(str(folder) if folder else model), folder
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"{field}: {model} cannot be loaded ({reason}); {options}") from error
