"""Digests of checkpoints, by which a damaged one is found before it is read.

The digests are a file in the checkpoint's own folder, written last. A checkpoint without them, as a kill at
that moment leaves, counts as damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jora_core.base.atomic_files import write_bytes
from jora_core.base.digests import file_digests

DIGESTS = "jora-digests.json"
# What reading a damaged file of digests raises.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class CheckpointNeeds:
    """What a checkpoint needs beside its own files.

    Attributes:
        log_bytes, log_sha256: length and SHA-256 of the metrics log up to the checkpoint's step.
        best_step: step of the checkpoint with the best weights, if that one is kept too.
    """

    log_bytes: int
    log_sha256: str
    best_step: int | None

    @classmethod
    def of(cls, log: Path, best_step: int | None) -> CheckpointNeeds:
        """Return the needs of a checkpoint that is saved now."""
        data = log.read_bytes() if log.is_file() else b""
        return cls(len(data), hashlib.sha256(data).hexdigest(), best_step)


def write_digests(folder: Path, needs: CheckpointNeeds) -> None:
    """Write the digests of all files of a checkpoint into its folder."""
    names = _names(folder)
    if not names:
        return
    digests = file_digests([folder / name for name in names])
    found = {"files": dict(zip(names, digests, strict=True)), "needs": asdict(needs)}
    write_bytes(folder / DIGESTS, json.dumps(found, sort_keys=True, indent=1).encode())


def best_steps(steps: Path) -> dict[int, int | None]:
    """Return, for the step of each checkpoint with readable digests, the step of the best one until then."""
    found: dict[int, int | None] = {}
    for path in steps.glob(f"*/{DIGESTS}"):
        with suppress(*_UNREADABLE):
            found[int(path.parent.name)] = _read(path)[1].best_step
    return found


def damage_of(folder: Path) -> str | None:
    """Return what is damaged in a checkpoint, or None if all its files are as they were written."""
    return _checked(folder)[0]


def remove_damaged(steps: Path, log: Path) -> list[str]:
    """Remove damaged checkpoints, from the newest back to the first whole one, and the log's rows after it.

    Args:
        steps: folder with one folder for each checkpoint, named by its step.
        log: the metrics log.

    Returns:
        One line for each removed checkpoint.
    """
    said: list[str] = []
    numbers = sorted((int(path.name) for path in steps.iterdir() if path.name.isdigit()), reverse=True)
    for number in numbers:
        found, needs = _checked(steps / str(number))
        if needs is not None:
            found = found or _log_damage(log, needs)
            # The run ends with the weights of the best step, so a checkpoint is of no use without them.
            best = needs.best_step
            if found is None and best is not None and best != number:
                lost = _checked(steps / str(best))[0]
                found = f"the checkpoint of its best step {best}: {lost}" if lost else None
        if found is None and needs is not None:
            os.truncate(log, needs.log_bytes) if log.is_file() else None
            return said
        said.append(f"the checkpoint of step {number} is damaged ({found}) and was removed")
        shutil.rmtree(steps / str(number), ignore_errors=True)
    return said


def _checked(folder: Path) -> tuple[str | None, CheckpointNeeds | None]:
    """Return (damage, needs); needs is None where the digests cannot be read."""
    try:
        digests, needs = _read(folder / DIGESTS)
    except FileNotFoundError:
        return ("it has no digests" if folder.is_dir() else "it is gone"), None
    except _UNREADABLE:
        return DIGESTS, None
    names = _names(folder)
    for name in sorted({*digests, *names}):
        if name not in names or name not in digests:
            return name, needs
    try:
        present = file_digests([folder / name for name in names])
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read", needs
    changed = [name for name, digest in zip(names, present, strict=True) if digests[name] != digest]
    return (changed[0] if changed else None), needs


def _read(path: Path) -> tuple[dict[str, str], CheckpointNeeds]:
    found = json.loads(path.read_bytes())
    return dict(found["files"]), CheckpointNeeds(**found["needs"])


def _names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() and path.name != DIGESTS
    )


def _log_damage(log: Path, needs: CheckpointNeeds) -> str | None:
    try:
        with log.open("rb") as file:
            data = file.read(needs.log_bytes)
    except OSError:
        data = b""
    return None if hashlib.sha256(data).hexdigest() == needs.log_sha256 else log.name
