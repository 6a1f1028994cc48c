"""The folder of the base model for work outside of a run, such as a plan of memory."""

from __future__ import annotations

from pathlib import Path

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.keys import identify
from flows.engine.stage import Registry
from flows.stages.convert_model import NAME, base_folder
from jora_core.base.errors import InputError
from jora_core.specs.model_sources import source_kind


def finished_folder(config: PipelineConfig, store: Store, registry: Registry) -> Path | None:
    """Return the folder of the base model for work outside of a run; None if it must still be converted.

    Args:
        config: configuration with the model.
        store: store with the artifact of this stage.
        registry: name to stage.
    """
    path = Path(config.model.path)
    if source_kind(path) == "folder":
        return path
    key = identify(config, registry, until=NAME)[NAME].key
    if not store.path(NAME, key).is_dir() or not store.check(NAME, key).whole:
        return None
    return base_folder(config, store.path(NAME, key))


def converted(config: PipelineConfig, store: Store, registry: Registry) -> PipelineConfig:
    """Return a configuration whose base model is a model folder, for work outside of a run.

    Args:
        config: configuration with the model.
        store: store with the artifact of this stage.
        registry: name to stage.

    Raises:
        InputError: the model is in another layout and not converted yet.
    """
    folder = finished_folder(config, store, registry)
    if folder is None:
        raise InputError(
            f"model.path: {config.model.path} is not converted yet; run `{config.command('convert')}` first"
        )
    model = config.model.model_copy(update={"path": str(folder)})
    return config.model_copy(update={"model": model}).loaded_from(config.source)
