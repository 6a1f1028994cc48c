"""Continuing a finished training: its state beside the adapter, and a run that goes on from there.

The state is the last checkpoint (and the best one with `keep_best`), the metrics log, and what the training
was made of. A run with `continue_from` begins with these as its own checkpoints, so it takes the same path as
a run that was killed. With a constant learning rate, k steps continued to n are n steps, bit for bit. A
schedule with warm-up or decay is one of n steps from there on, while the first k steps had one of k.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jora_core.base.atomic_files import write_json
from jora_core.base.digests import file_digest
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.specs.train import TrainSpec
from jora_core.training.training_checkpoints import LOG, run_parts

STATE = "training_state"
IDENTITY = "training.json"
# Settings that a continued training may change: how long it is, how it learns, what it keeps.
_FREE = {
    "max_steps",
    "n_epochs",
    "optim",
    "evaluate_every",
    "early_stopping_patience",
    "early_stopping_min_delta",
    "keep_best",
    "remat",
    "attention",
    "matmul_precision",
    "mesh",
}


def save_training_state(spec: TrainSpec, step: int, best_step: int | None) -> None:
    """Copy the last checkpoint of a finished training into its output folder.

    Args:
        spec: spec of the training, whose checkpoints are on disk.
        step: its last step.
        best_step: the best step, if its weights are kept too.
    """
    folder = spec.output_dir / STATE
    shutil.rmtree(folder, ignore_errors=True)
    for number in sorted({step, best_step or step}):
        shutil.copytree(spec.checkpoint_dir / "steps" / str(number), folder / "steps" / str(number))
    shutil.copyfile(spec.checkpoint_dir / LOG, folder / LOG)
    # The chain of states: two trainings to one step by different ways have different digests.
    chain = None if spec.continue_from is None else state_digest(spec.continue_from)
    about = {"step": step, "schedule": _schedule(spec), "continued": chain, **_identity(spec)}
    write_json(folder / IDENTITY, about)


def state_digest(folder: Path) -> str:
    """Return a digest of the state in the folder of a finished training.

    Raises:
        InputError: there is no such state.
    """
    path = folder / STATE / IDENTITY
    if not path.is_file():
        raise InputError(
            f"continue_from: {folder} has no {STATE}, which a finished training with keep_state has; give "
            "such a training, or take its adapter as init_adapter"
        )
    return file_digest(path)


def begin_from_state(spec: TrainSpec, steps: int) -> list[str]:
    """Put the state that a spec continues into its empty checkpoint folder; return lines about it.

    A checkpoint folder that was begun already is left as it is.

    Args:
        spec: the spec, with `continue_from`.
        steps: steps of the whole training, those that are done included.

    Raises:
        InputError: no state, a state of other records or settings, or one that has the steps already.
    """
    assert spec.continue_from is not None
    state_digest(spec.continue_from)
    source = spec.continue_from / STATE
    found = read_json_object(source / IDENTITY, f"training {spec.continue_from}")
    own = _identity(spec)
    before, after = _flat(found), _flat({**found, **own})
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        raise InputError(
            f"continue_from: {spec.continue_from} was trained with another {changed[0]}; it must be the same "
            "to go on. To begin anew from its weights, give its adapter as init_adapter"
        )
    done = int(found["step"])
    if steps <= done:
        raise InputError(
            f"continue_from: {spec.continue_from} has {done} steps already; raise max_steps (now {steps}), "
            "which counts them"
        )
    lines = [f"continue_from: going on after step {done} of {spec.continue_from.name}"]
    if found.get("schedule") != _schedule(spec) or not _constant(spec):
        lines.append(
            f"continue_from: the learning rate now follows a schedule of {steps} steps; {steps} steps from "
            f"the beginning would have had other rates in its first {done}"
        )
    if (spec.checkpoint_dir / "digest").exists():
        return lines
    shutil.rmtree(spec.checkpoint_dir / "steps", ignore_errors=True)
    shutil.copytree(source / "steps", spec.checkpoint_dir / "steps")
    shutil.copyfile(source / LOG, spec.checkpoint_dir / LOG)
    return lines


def _constant(spec: TrainSpec) -> bool:
    return spec.optim.schedule == "constant" and spec.optim.warmup_ratio == 0


def _schedule(spec: TrainSpec) -> dict[str, Any]:
    return spec.optim.model_dump(mode="json")


def _identity(spec: TrainSpec) -> dict[str, Any]:
    """Return what must be the same for the state to fit: settings, records, model and first adapter."""
    parts = run_parts(spec)
    settings = {name: value for name, value in parts.pop("spec").items() if name not in _FREE}
    parts.pop("continued", None)
    # As JSON, so that what is read back compares equal.
    return json.loads(json.dumps({"settings": settings, "inputs": parts}))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        inner = _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
        found |= inner
    return found
