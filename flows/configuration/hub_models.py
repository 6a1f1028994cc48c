"""Base models that are given by their name on the Hugging Face hub, or by a name that `jora fetch` knows.

The name stands for the folder of the model in the local cache. Nothing is fetched unless `model.download`
is true. The folder has the commit in its name, so a configuration that goes to a worker means the same files
there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.configuration.fetched_models import MODEL_FOLDER, MODELS
from jora_core.base.errors import InputError
from retrieval.corpus.remote_sources import HUB_NAME, cache_folder, cached_snapshot, hub_cache

#: What the pipeline reads of a model.
_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "additional_chat_templates/*")


def with_hub_models(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a configuration in which the base model and the tokenizer are paths of folders.

    Args:
        raw: a configuration as nested mappings, whose `root` and other paths are absolute.
        source: name of the origin of `raw`, for errors.

    Raises:
        InputError: a model cannot be fetched, or only a part of it is in the cache.
    """
    root = Path(str(raw.get("root", ".")))
    model, context = raw.get("model"), raw.get("context")
    if isinstance(model, Mapping) and isinstance(model.get("path"), str):
        folder = _folder(model["path"], root, f"{source}: model.path", model.get("download") is True)
        raw = {**raw, "model": {**model, "path": folder}}
    if isinstance(context, Mapping) and isinstance(context.get("tokenizer"), str):
        folder = _folder(context["tokenizer"], root, f"{source}: context.tokenizer", False)
        raw = {**raw, "context": {**context, "tokenizer": folder}}
    return raw


def models_cache() -> Path:
    """Return the folder of all fetched models: `$JORA_CACHE/models`, by default `~/.cache/jora/models`."""
    return cache_folder().parent / "models"


def fetched_folder(name: str) -> Path:
    """Return the model folder of a fetched model, whether it exists or not."""
    return models_cache() / name / MODEL_FOLDER


def fetched_name(folder: Path) -> str | None:
    """Return the name of the model that has this folder; None for any other folder."""
    return next((name for name in MODELS if fetched_folder(name) == folder), None)


def model_name(path: Path) -> str:
    """Return the name of a base model for reports, not `hf` for the folder of a fetched model."""
    fetched = fetched_name(path)
    return fetched or (path.stem if path.suffix == ".gguf" else path.name)


def missing_model(folder: Path, root: Path) -> InputError:
    """Return the error for a base model whose folder does not exist.

    Args:
        folder: the configured folder.
        root: the folder that relative paths count from.
    """
    if fetched := fetched_name(folder):
        return InputError(f"model.path: {fetched} is not fetched yet; run `jora fetch {fetched}`")
    what = "is not a folder" if folder.exists() else "there is no folder"
    name = str(folder.relative_to(root)) if folder.is_relative_to(root) else ""
    if HUB_NAME.match(name) is None:
        return InputError(
            f"model.path: {what} {folder}; give a model folder in Hugging Face or Meta's layout, a GGUF "
            f"file, or a name that `jora fetch` knows ({', '.join(MODELS)})"
        )
    return InputError(
        f"model.path: {what} {folder}, and no model {name} in the Hugging Face cache {hub_cache()}; correct "
        f"the path, fetch the model with `{_command(name)}`, or set model.download to true"
    )


def _command(name: str) -> str:
    repository, _, revision = name.partition("@")
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")


def _folder(name: str, root: Path, where: str, download: bool) -> str:
    """Return the folder of a model by name; without one, the path below `root`, which its reader reports."""
    if name in MODELS:
        return str(fetched_folder(name))
    match = HUB_NAME.match(name)
    if match is None:
        return name
    repository, revision = match[1], match[2]
    found = cached_snapshot(repository, "model", revision)
    complete = found is not None and (found / "config.json").is_file()
    if download and not complete:
        found, complete = _fetched(repository, revision, where, _command(name)), True
    if found is None:
        return str(root / name)
    if not complete:
        raise InputError(
            f"{where}: only a part of {name} is in the cache {found}; fetch it all with `{_command(name)}`"
        )
    return str(found)


def _fetched(repository: str, revision: str | None, where: str, command: str) -> Path:
    # Here, because half a second of imports is for those who fetch.
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(_PATTERNS),
                cache_dir=os.fspath(hub_cache()),
            )
        )
    except Exception as error:  # network, rights, names and disks have errors of several libraries
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{where}: {repository} cannot be fetched from the Hugging Face hub ({reason:.200}); fetch it "
            f"with `{command}` where there is a network and access, or give a folder"
        ) from error
