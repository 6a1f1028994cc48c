"""The systems of an evaluation: baselines, the run's own models, changed contexts, and other adapters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flows.configuration.gates import BASE, BOTH_PHASES, FIRST_PHASE
from jora_core.base.errors import InputError
from jora_core.specs.lora import ADAPTER_FILES
from retrieval.corpus.remote_sources import is_path
from retrieval.settings.task_registry import TASKS

#: The run's own models.
MODELS = (BASE, FIRST_PHASE, BOTH_PHASES)
#: The most trained model with changed contexts (`retrieval.prompts.context_variants`). Each costs as much as
#: a model, so they are off unless they are named.
VARIANTS = ("closed_book", "oracle_only", "shuffled")

_KEY = re.compile(r"[0-9a-f]{6,64}")
_NAME = re.compile(r"[\w.@-]{1,60}")
#: Stages of a store whose artifacts are adapters.
_STAGES = ("finetune-structure", "finetune-task")


def baselines() -> tuple[str, ...]:
    """Return the names of the systems without a model, of all tasks."""
    return tuple(dict.fromkeys(name for task in TASKS.values() for name in task.facts.baselines))


def is_own(entry: str) -> bool:
    """Return whether an entry names a system of the run; the others are adapters."""
    return entry in (*baselines(), *MODELS, *VARIANTS)


def named_adapter(entry: str) -> tuple[str, str]:
    """Return (name in tables, key or folder) of an entry such as `last=runs/finetune-task/ab12cd34ef56`.

    Without a name, an adapter is called by the first letters of its key, or by its folder.
    """
    name, mark, place = entry.partition("=")
    if mark:
        return name, place
    found = next((part for part in reversed(Path(entry).parts) if _KEY.fullmatch(part)), None)
    return (found[:12] if found else Path(entry).name), entry


def check_systems(entries: Sequence[str]) -> None:
    """Refuse a list of systems that names none twice, nothing unknown, and no model.

    Raises:
        ValueError: an entry is not a known name, a key or a folder, or two entries have one name.
    """
    names = []
    for entry in entries:
        if is_own(entry):
            names.append(entry)
            continue
        name, place = named_adapter(entry)
        if not _NAME.fullmatch(name) or not place:
            raise ValueError(f"expected NAME=KEY or NAME=FOLDER of letters, digits and ._@-, got {entry!r}")
        if not _KEY.fullmatch(place) and not is_path(place):
            known = ", ".join((*MODELS, *VARIANTS, *baselines()))
            raise ValueError(
                f"no system {entry!r}; expected one of {known}, the key of a finished training, or a PEFT "
                "folder, such as ./adapter or before=./adapter"
            )
        names.append(name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two systems are called {twice[0]}; give one another name, as NAME=FOLDER")
    owned = [entry for entry in entries if entry in (*baselines(), *VARIANTS)]
    if entries and len(owned) == len(entries):
        raise ValueError(f"expected at least one model, such as {BASE} or {BOTH_PHASES}")


def adapter_folders(entries: Sequence[str], store: Path) -> dict[str, Path]:
    """Return the PEFT folder of each entry that is no system of the run, by its name in tables.

    Args:
        entries: `evaluate.systems`.
        store: folder of the store that keys are looked up in.

    Raises:
        InputError: a key or folder has no adapter, or a key is not unique.
    """
    found = {}
    for entry in entries:
        if is_own(entry):
            continue
        name, place = named_adapter(entry)
        if is_path(place):
            folders = [Path(place)]
        else:
            folders = [folder for stage in _STAGES for folder in sorted((store / stage).glob(f"{place}*"))]
        whole = [folder for folder in folders if all((folder / file).is_file() for file in ADAPTER_FILES)]
        if len(whole) != 1:
            why = f"{len(whole)} trainings have this key" if whole else "no adapter there"
            raise InputError(
                f"evaluate.systems: {place}: {why}; expected a PEFT folder with "
                f"{' and '.join(ADAPTER_FILES)}, or the key of one finished training in {store}"
            )
        found[name] = whole[0]
    return found
