"""Orbax checkpoints of the training state, which belong to one spec and stay valid after a kill.

Orbax writes a checkpoint under a temporary name and renames it, so an incomplete checkpoint is never read.
The newest checkpoints are kept, and optionally the best one. The folder holds a digest of the spec and of its
input files, so that the state of another spec is never resumed.

Orbax does not notice a changed bit of an array. So each checkpoint also holds the SHA-256 of all its files
and of the metrics log up to its step (:mod:`jora_core.training.checkpoint_digests`). They are checked before
the checkpoint is read. A damaged checkpoint is removed, and the one before it takes its place. Training from
there gives the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from jora_core.base.atomic_files import write_bytes
from jora_core.base.digests import file_digest, json_digest
from jora_core.base.errors import InputError
from jora_core.data.records import selection_digest
from jora_core.parallel.processes import is_first, wait_for_all
from jora_core.specs.lora import ADAPTER_FILES
from jora_core.specs.prompts.source import template_source
from jora_core.specs.train import TrainSpec
from jora_core.training.checkpoint_digests import (
    CheckpointNeeds,
    best_steps,
    damage_of,
    remove_damaged,
    write_digests,
)
from jora_core.training.early_stopping import EarlyStopping
from jora_core.training.train_step import TrainState

# Fields of a spec that do not change what is computed: where results go, what is cached, what is reported.
_NOT_COMPUTED = {
    "output_dir",
    "checkpoint_dir",
    "compilation_cache_dir",
    "checkpoint_every",
    "keep_checkpoints",
    "report_to",
    "report_dir",
    "report_tags",
    "distributed",
    "keep_state",
    "continue_from",
}
# Identified by content instead of by path: a run may be resumed after its inputs moved.
_BY_CONTENT: dict[str, Any] = {"model": True, "data": {"records", "alpaca_path", "cache_dir", "prompt"}}
# Names of the early-stopping state in checkpoints of earlier versions.
_EARLIER_NAMES = {"mark": "reference_loss", "waited": "without_improvement"}

_RENAME_SECONDS = 60.0  # longest wait for a rename that follows at once
LOG = "metrics.jsonl"  # the copy of the metrics log beside the checkpoints


@dataclass(frozen=True)
class Position:
    """Position of a training run.

    Attributes:
        step: number of finished steps.
        epoch, index: position of the next microbatch in the stream.
        early_stopping: state of early stopping.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Position:
        """Make a position from the result of `dataclasses.asdict`, also in the form of earlier versions."""
        found: dict[str, Any] = value.get("early_stopping") or value.get("standing") or {}
        renamed: dict[str, Any] = {_EARLIER_NAMES.get(name, name): number for name, number in found.items()}
        return cls(value["step"], value["epoch"], value["index"], EarlyStopping(**renamed))


class _PreservationPolicy(policies.PreservationPolicy):
    """Orbax policy that keeps the newest checkpoints and the best one as of each of them.

    The best as of an older checkpoint is kept too: without it, a run could not continue from there when the
    newest checkpoint is damaged.

    Attributes:
        best_of: step of the best checkpoint as of each checkpoint, by step.
    """

    def __init__(self, newest: int, best_of: dict[int, int | None]) -> None:
        self._newest = newest
        self.best_of = best_of

    def should_preserve(
        self, checkpoints: Sequence[policies.PolicyCheckpointInfo], *, context: policies.PreservationContext
    ) -> list[bool]:
        newest = {found.step for found in checkpoints[-self._newest :]}
        kept = newest | {self.best_of.get(step) for step in newest}
        return [found.step in kept for found in checkpoints]


class Checkpoints:
    """The checkpoints of one spec in one folder."""

    def __init__(self, folder: Path, digest: str, keep: int = 2, keep_best: bool = False) -> None:
        """Open a checkpoint folder, and remove incomplete checkpoints and those of another spec.

        Args:
            folder: checkpoint folder, used by one run at a time.
            digest: `run_digest` of the spec.
            keep: number of newest checkpoints to keep.
            keep_best: whether the best checkpoint as of each of them is kept as well.

        Raises:
            InputError: the folder cannot be written.
        """
        # Orbax logs each of its phases; the loop reports what a person needs to know.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.fresh_because: str | None = None
        self.damage: list[str] = []
        self._saving: tuple[int, CheckpointNeeds] | None = None
        self._sealing: threading.Thread | None = None
        self._folder = Path(folder).absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if is_first():
                self._take_over(digest)
        except OSError as err:
            raise InputError(f"cannot write checkpoint_dir {folder}: {err.strerror or err}") from None
        wait_for_all("checkpoint folder")
        self._policy = _PreservationPolicy(keep, best_steps(self._folder / "steps") if keep_best else {})
        self._keep_best = keep_best
        self._manager = ocp.CheckpointManager(
            self._folder / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                # Called before the rename that makes the checkpoint visible.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._follow_rename),
            ),
        )

    def _take_over(self, digest: str) -> None:
        """Write the digest into the folder; remove checkpoints of another digest, and damaged ones."""
        owner, steps, log = self._folder / "digest", self._folder / "steps", self._folder / LOG
        # As bytes: a damaged file need not be text.
        if owner.exists() and owner.read_bytes().strip() != digest.encode():
            self.fresh_because = "its checkpoints belong to another spec or to other input files"
            shutil.rmtree(steps, ignore_errors=True)
            log.unlink(missing_ok=True)
        elif steps.is_dir():
            self.damage = remove_damaged(steps, log)
        write_bytes(owner, f"{digest}\n".encode())

    def _follow_rename(self) -> None:
        """Start to wait for the rename of the checkpoint that Orbax has just written."""
        if is_first() and self._saving is not None:
            self._sealing = threading.Thread(target=self._write_digests, args=self._saving, daemon=True)
            self._sealing.start()

    def _write_digests(self, step: int, needs: CheckpointNeeds) -> None:
        # Orbax changes its metadata until the rename, and has no callback after it.
        folder = self._folder / "steps" / str(step)
        deadline = time.monotonic() + _RENAME_SECONDS
        while not folder.is_dir() and time.monotonic() < deadline:
            time.sleep(0.005)
        # A folder that is already replaced by later checkpoints, or never appears, needs no digests.
        with suppress(OSError):
            write_digests(folder, needs)

    def _settle(self) -> None:
        """Wait until the last save and its digests are on disk."""
        self._manager.wait_until_finished()
        if self._sealing is not None:
            self._sealing.join()

    def save(self, state: TrainState, position: Position) -> None:
        """Save a checkpoint; return as soon as the state is copied, and write in the background."""
        if position.step in self._manager.all_steps():
            return
        leaves = _as_dict(state)
        if jax.default_backend() == "cpu":
            # On the CPU backend, what Orbax writes in the background may be a view of the buffers that are
            # donated to the next step, which overwrites them.
            leaves = jax.tree.map(jnp.copy, leaves)
        # The save before must be finished, since its digests are written with its own step.
        self._settle()
        best = position.early_stopping.best_step if self._keep_best else None
        self._policy.best_of[position.step] = best
        self._saving = (position.step, CheckpointNeeds.of(self._folder / LOG, best))
        self._manager.save(
            position.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(leaves),  # type: ignore[call-arg]
                position=ocp.args.JsonSave(dataclasses.asdict(position)),  # type: ignore[call-arg]
            ),
        )

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, Position] | None:
        """Read a checkpoint.

        Args:
            like: state of the same shapes and placements on devices.
            step: step of the checkpoint, the newest if None.

        Returns:
            State and position, or None if there is no checkpoint.

        Raises:
            RuntimeError: the checkpoint of the given step is damaged. Another start of the run notices it and
                continues from an earlier checkpoint.
        """
        self._settle()
        if step is not None and (found := damage_of(self._folder / "steps" / str(step))):
            raise RuntimeError(f"checkpoint of step {step}: {found}; start the run again")
        step = self._manager.latest_step() if step is None else step
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(like))
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),  # type: ignore[call-arg]
                position=ocp.args.JsonRestore(),  # type: ignore[call-arg]
            ),
        )
        leaves = [found["state"][name] for name in sorted(found["state"])]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return state, Position.from_json(found["position"])

    def close(self) -> None:
        """Wait until all saved checkpoints are on disk."""
        self._settle()
        self._manager.close()


def run_digest(spec: TrainSpec) -> str:
    """Return the SHA-256 of all inputs of a run: spec, records, tokenizer, and headers of the weights."""
    return json_digest(run_parts(spec))


def run_parts(spec: TrainSpec) -> dict[str, Any]:
    """Return all inputs of a run: spec, and digests of records, tokenizer, and headers of the weights.

    Weights are identified by name, size and safetensors header instead of content, since reading 140 GB would
    take longer than most resumed runs save.
    """
    excluded = dict.fromkeys(_NOT_COMPUTED, True) | _BY_CONTENT
    if spec.early_stopping_patience is None and not spec.keep_best:
        excluded["evaluate_every"] = True  # then the validation loss decides nothing
    fields = spec.model_dump(mode="json", exclude=excluded)
    parts: dict[str, Any] = {"spec": fields | {"adapter": spec.adapter is not None}}
    if spec.data.records.is_file():
        # The rows that are trained on, not the whole file: rows of other tasks may change meanwhile.
        parts["records"] = selection_digest(spec.data)
    # The template, wherever it comes from: it decides every token.
    parts["prompt"] = [template_source(spec.data.prompt, spec.model).digest, spec.data.prompt.system]
    files: dict[str, Path] = {}
    if spec.data.alpaca_path is not None:
        files["alpaca"] = spec.data.alpaca_path
    files |= {name: spec.model / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json")}
    if spec.continue_from is not None:
        files["continued"] = spec.continue_from / "training_state" / "training.json"
    if spec.adapter is not None:
        files |= {n: spec.adapter / n for n in ADAPTER_FILES}
    for role, file in files.items():
        if file.is_file():
            parts[role] = file_digest(file)
    if spec.init == "pretrained":
        for file in sorted(spec.model.glob("*.safetensors")):
            with file.open("rb") as stream:
                # A safetensors file begins with the length of its JSON header; the bound guards against a
                # damaged length.
                head = stream.read(min(int.from_bytes(stream.read(8), "little"), 1 << 26))
            parts[file.name] = [file.stat().st_size, hashlib.sha256(head).hexdigest()]
    return parts


def _as_dict(state: TrainState) -> dict[str, jax.Array]:
    """Return the leaves of a state as a flat dict, so that files do not depend on the nesting of classes."""
    return {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
