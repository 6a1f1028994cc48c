"""Find and load sentence-transformers models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.remote_sources import is_url
from retrieval.corpus.source_files import expand_path
from retrieval.settings.context import ContextConfig


def models(config: ContextConfig) -> dict[str, str]:
    """Return the configured sentence-transformers models by the setting that names them."""
    found = {"embedder": config.embedder, "reranker": config.reranker}
    return {field: model for field, model in found.items() if model}


def model_folder(model: str, field: str) -> Path | None:
    """Return the folder of a sentence-transformers model, or None if `model` is a public name.

    Raises:
        InputError: the text looks like a path, but there is no such folder.
    """
    # A URL is kept as it is: `expand_path` would fetch it, and only a folder or a name is meant here.
    path = Path(model if is_url(model) else expand_path(model, field))
    if path.is_dir():
        return path
    # A public name has at most one slash (`owner/name`). A path must not be taken for a name: the library
    # would look for it on the hub, and fail with a message about the network.
    looks_like_path = path.is_absolute() or model.startswith((".", "~", "$")) or model.count("/") > 1
    if looks_like_path:
        raise InputError(
            f"{field}: folder {path} does not exist; give a sentence-transformers folder or name"
        )
    return None


def open_model(
    field: str, model: str, marker: str, options: str, make: Callable[[str], Any]
) -> tuple[Any, Path | None]:
    """Load a sentence-transformers model from its folder or by its public name.

    Args:
        field: the setting that names the model, for errors.
        model: folder or public name.
        marker: file that every folder of such a model contains.
        options: settings to use instead of an unusable model, for errors.
        make: loads a model from a folder or name.

    Returns:
        (the model, its folder or None).

    Raises:
        InputError: the folder is missing or lacks `marker`, or the model cannot be loaded.
    """
    folder = model_folder(model, field)
    if folder is not None and not (folder / marker).is_file():
        raise InputError(f"{field}: {folder} holds no {marker}, so it is not a model of this kind; {options}")
    try:
        return make(str(folder) if folder else model), folder
    # Which of these the library raises depends on what is wrong: a missing file, an unknown architecture, a
    # broken weights file, no network.
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"{field}: {model} cannot be loaded ({reason}); {options}") from error
