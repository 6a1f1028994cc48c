"""Check before a run that its store can be written to, and that the disk has room for all that it writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from flows.configuration.schema import PhaseConfig, PipelineConfig
from flows.engine.artifact_store import Store
from jora_core.base.errors import InputError

# Of the base model's bytes, for adapters with their optimizer state and two checkpoints.
TRAINING_SHARE = 0.05
# For records, logs, reports and compiled programs.
LEAST_BYTES = 64 * 2**20


def bytes_needed(config: PipelineConfig, stages: Collection[str]) -> int:
    """Return about how many bytes some stages write.

    Args:
        config: configuration of the run.
        stages: names of the stages that would run.
    """
    base = _model_bytes(Path(config.model.path))
    phases: list[PhaseConfig] = [phase for phase in config.phases if phase.stage in stages]
    return LEAST_BYTES + int(base * TRAINING_SHARE * len(phases)) + (base if "export" in stages else 0)


def require_space(config: PipelineConfig, store: Store, stages: Collection[str]) -> None:
    """Refuse a run whose store cannot be written to, or whose disk has too little room.

    Args:
        config: configuration of the run.
        store: the artifact store.
        stages: names of the stages that would run.

    Raises:
        InputError: the store cannot be written to, or its disk has too little room. The message says how much
            is missing.
    """
    if not stages:
        return
    needed = bytes_needed(config, stages)
    place = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    if not place.is_dir():
        raise InputError(
            f"store {store.root}: {place} is a file; choose another folder with --set store=FOLDER"
        )
    disk = shutil.disk_usage(place)
    # /proc, for example, has no room at all.
    if not os.access(place, os.W_OK | os.X_OK) or not disk.total:
        raise InputError(
            f"store {store.root}: no right to write to {place}; change its rights, or choose another "
            "folder with --set store=FOLDER"
        )
    free = disk.free
    if free < needed:
        missing = (needed - free) / 1e9
        raise InputError(
            f"store {store.root}: the run needs about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
            f"free {missing:.2f} GB more (`jora gc` removes what no run needs), or choose another folder "
            "with --set store=FOLDER"
        )


def _model_bytes(folder: Path) -> int:
    # A folder that does not exist is an error of the stage that reads it.
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
