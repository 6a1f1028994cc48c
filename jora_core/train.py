"""Train an adapter, or a whole model: ``python -m jora_core.train --spec SPEC.json``.

The loop is the same for both. Its random choices follow from (seed, epoch) and (seed, step, microbatch), and
its sums are empty between steps, so a run that was killed and is started again ends with the same bits as one
that was not.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jora_core.batches import Batch, BatchStream
from jora_core.checkpoint import Checkpoints, Position, run_digest
from jora_core.command import run_command, set_compilation_cache
from jora_core.config import ModelConfig
from jora_core.data import TrainData, load_groups
from jora_core.errors import InputError
from jora_core.lora import Adapter, init_adapter, load_adapter, save_adapter
from jora_core.metrics import MetricsLog, StepProgress, peak_memory_bytes
from jora_core.model import Params, init_params
from jora_core.optim import make_schedule
from jora_core.sharding import adapter_shardings, make_mesh, param_shardings
from jora_core.spec import TrainSpec
from jora_core.step import StepMetrics, Sums, TrainState, TrainStep, build_step
from jora_core.storage import atomic_path, write_json
from jora_core.tokenize import load_tokenizer
from jora_core.weights import load_params, save_params

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)
_NAMED_IDS = 20


class DivergedError(RuntimeError):
    """The loss is not a number any more; the message names the step and its records."""


class Interrupted(SystemExit):
    """SIGTERM came; the state is in a checkpoint. Exit code 143, as of a process that the signal ended."""

    def __init__(self) -> None:
        super().__init__(143)


@dataclass(frozen=True)
class Run:
    """All that a training loop needs besides its state."""

    spec: TrainSpec
    config: ModelConfig
    steps: int
    stream: BatchStream
    validation: BatchStream | None
    step: TrainStep
    frozen: Params | None


@dataclass
class _Pending:
    """A step that is still being computed: read when the next one is on its way."""

    number: int
    metrics: StepMetrics
    ids: tuple[str, ...]
    slots: int
    supervised: int


def train(spec: TrainSpec, verbose: bool = True) -> dict[str, Any]:
    """Do what a spec orders, resuming from its checkpoint folder if that holds a state of the same order.

    Args:
        verbose: report progress on stderr.

    Returns:
        What ``result.json`` in the output folder says.

    Raises:
        InputError: the spec's files or values cannot be used.
        DivergedError: the loss became NaN or infinite.
        Interrupted: SIGTERM; the state was saved.
    """
    began = time.perf_counter()
    set_compilation_cache(spec.compilation_cache_dir)
    config = ModelConfig.from_hf(spec.model)
    mesh = make_mesh(spec.mesh.data, spec.mesh.tensor)
    tokenizer = load_tokenizer(spec.model, config.vocab_size)
    with jax.set_mesh(mesh):
        lines: list[str] = []
        data = load_groups(spec.data, tokenizer, spec.seed, lines.append)
        stream = BatchStream(
            data.train,
            spec.data.tokens_per_batch,
            seed=spec.seed,
            blocks=spec.mesh.data,
            curriculum=spec.data.curriculum,
        )
        steps = _total_steps(spec, stream)
        trainable, frozen = _initial_weights(spec, config, mesh)
        functions = build_step(config, spec, mesh, make_schedule(spec.optim, steps), trainable)
        run = Run(spec, config, steps, stream, _validation_stream(spec, data), functions, frozen)
        state, result = _loop(run, functions.start(trainable), lines, verbose)
    result |= {"data": data.counts, "seconds_total": round(time.perf_counter() - began, 3)}
    _write_outputs(spec, config, state, result)
    return result


def _total_steps(spec: TrainSpec, stream: BatchStream) -> int:
    if spec.max_steps is not None:
        return spec.max_steps
    assert spec.n_epochs is not None
    return max(1, math.ceil(stream.count(spec.n_epochs) / spec.gradient_accumulation_steps))


def _validation_stream(spec: TrainSpec, data: TrainData) -> BatchStream | None:
    if not data.validation:
        return None
    return BatchStream(
        data.validation, spec.data.tokens_per_batch, seed=spec.seed, blocks=spec.mesh.data, shuffle=False
    )


def _initial_weights(spec: TrainSpec, config: ModelConfig, mesh: Any) -> tuple[Any, Params | None]:
    """The tree to train and, for an adapter, the frozen weights below it."""
    key = jax.random.key(spec.seed)
    dtype = jnp.dtype("float32" if spec.trainable == "all" else spec.dtype)
    if spec.init == "random":
        make = jax.jit(lambda k: init_params(config, k, dtype), out_shardings=param_shardings(config, mesh))
        params = make(key)
    else:
        params = load_params(spec.model, config, dtype, mesh)
    if spec.trainable == "all":
        return params, None
    if spec.adapter is None:
        adapter = jax.jit(lambda k: init_adapter(config, spec.lora, jax.random.fold_in(k, 1)))(key)
    else:
        adapter = _adapter_to_continue(spec, config)
    return jax.device_put(adapter, adapter_shardings(config, adapter, mesh)), params


def _adapter_to_continue(spec: TrainSpec, config: ModelConfig) -> Adapter:
    assert spec.adapter is not None
    adapter, found = load_adapter(spec.adapter, config)
    for name in ("r", "lora_alpha"):
        if getattr(found, name) != getattr(spec.lora, name):
            raise InputError(
                f"{spec.adapter}: the adapter has {name}={getattr(found, name)}, the order lora.{name}="
                f"{getattr(spec.lora, name)}; give the adapter's own value to go on from it"
            )
    if set(found.target_modules) != set(spec.lora.target_modules):
        raise InputError(
            f"{spec.adapter}: the adapter is on {', '.join(found.target_modules)}, the order's "
            f"lora.target_modules are {', '.join(spec.lora.target_modules)}; they must be the same"
        )
    return adapter.replace(dropout=spec.lora.lora_dropout)  # type: ignore[attr-defined]


def _loop(run: Run, state: TrainState, lines: list[str], verbose: bool) -> tuple[TrainState, dict[str, Any]]:
    spec = run.spec
    checkpoints = Checkpoints(spec.checkpoint_dir, run_digest(spec))
    resumed = checkpoints.restore(state)
    state, position = resumed or (state, Position())
    log = MetricsLog(spec.output_dir / "metrics.jsonl", spec.checkpoint_dir / "metrics.jsonl", position.step)
    progress = StepProgress(run.steps, position.step, verbose)
    for line in lines:
        progress.say(line)
    if checkpoints.fresh_because:
        progress.say(f"checkpoints: starting anew in {spec.checkpoint_dir}, {checkpoints.fresh_because}")
    if position.step:
        progress.say(f"checkpoints: resuming after step {position.step} of {run.steps}")
    meter = _Meter(log, progress)
    try:
        with _terminated() as stop:
            state = _steps(run, state, position, checkpoints, meter, stop)
    finally:
        checkpoints.close()
        log.close()
        progress.close()
    return state, _result(run, log)


def _steps(
    run: Run, state: TrainState, position: Position, checkpoints: Checkpoints, meter: _Meter, stop: list[bool]
) -> TrainState:
    """Run from a position to the last step; a step's metrics are read while the next one computes."""
    spec = run.spec
    walk = run.stream.walk(position.epoch, position.index)
    sums = run.step.zero(state)
    pending: _Pending | None = None
    for number in range(position.step + 1, run.steps + 1):
        state, sums, new, position = _one_step(run, state, sums, walk, number)
        if pending is not None:
            meter.write(pending)
        pending = new
        last = number == run.steps
        if last or stop[0] or number % spec.checkpoint_every == 0:
            # Read first: a state that no longer is a number must never replace a good checkpoint.
            meter.write(pending, _validation_loss(run, state))
            pending = None
            checkpoints.save(state, position)
            if stop[0] and not last:
                meter.say(f"stopped by SIGTERM after step {number}; the same order goes on from here")
                raise Interrupted
    return state


def _one_step(
    run: Run, state: TrainState, sums: Sums, walk: Iterator[tuple[tuple[int, int], Batch]], number: int
) -> tuple[TrainState, Sums, _Pending, Position]:
    ids: list[str] = []
    slots = supervised = 0
    epoch = index = 0
    for microbatch in range(run.spec.gradient_accumulation_steps):
        (epoch, index), batch = next(walk)
        placed = run.step.place(batch)
        sums = run.step.accumulate(sums, state, run.frozen, placed, microbatch)
        ids.extend(batch.ids)
        slots += batch.slots
        supervised += batch.supervised
    state, sums, metrics = run.step.update(state, sums)
    return (
        state,
        sums,
        _Pending(number, metrics, tuple(ids), slots, supervised),
        Position(number, epoch, index),
    )


def _validation_loss(run: Run, state: TrainState) -> float | None:
    if run.validation is None:
        return None
    loss = weight = 0.0
    for plan in run.validation.plan(0):
        sums = run.step.evaluate(state, run.frozen, run.step.place(run.validation.build(plan)))
        loss += float(sums[0])
        weight += float(sums[1])
    return loss / max(weight, 1e-9)


class _Meter:
    """Turns finished steps into rows of metrics, and stops the run when the loss is no number."""

    def __init__(self, log: MetricsLog, progress: StepProgress) -> None:
        self._log = log
        self._progress = progress
        self._last = time.perf_counter()

    def write(self, pending: _Pending, validation_loss: float | None = None) -> None:
        metrics = jax.device_get(pending.metrics)
        loss = float(metrics.loss)
        if not (math.isfinite(loss) and math.isfinite(float(metrics.grad_norm))):
            named = ", ".join(pending.ids[:_NAMED_IDS])
            more = f" and {len(pending.ids) - _NAMED_IDS} more" if len(pending.ids) > _NAMED_IDS else ""
            raise DivergedError(
                f"step {pending.number}: loss {loss}, gradient norm {float(metrics.grad_norm)}; "
                f"the step's records: {named}{more}"
            )
        now = time.perf_counter()
        row: dict[str, Any] = {
            "step": pending.number,
            "loss": loss,
            "supervised_tokens": pending.supervised,
            "tokens": pending.slots,
            "tokens_per_s": round(pending.slots / max(now - self._last, 1e-9), 1),
            "grad_norm": float(metrics.grad_norm),
            "learning_rate": float(metrics.learning_rate),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        if validation_loss is not None:
            row["validation_loss"] = validation_loss
        self._last = now
        self._log.write(row)
        self._progress.step(row)

    def say(self, line: str) -> None:
        self._progress.say(line)


@contextmanager
def _terminated() -> Iterator[list[bool]]:
    """A flag that SIGTERM sets; where signals cannot be had (another thread), it stays unset."""
    flag = [False]
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: flag.__setitem__(0, True))
    except ValueError:
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)


def _result(run: Run, log: MetricsLog) -> dict[str, Any]:
    rows = log.rows
    seconds = sum(row["tokens"] / max(row["tokens_per_s"], 1e-9) for row in rows)
    result = {
        "steps": run.steps,
        "final_loss": rows[-1]["loss"],
        "mean_loss_last_10": sum(row["loss"] for row in rows[-10:]) / len(rows[-10:]),
        "seconds": round(seconds, 3),
        "tokens": sum(row["tokens"] for row in rows),
        "supervised_tokens": sum(row["supervised_tokens"] for row in rows),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "row_lengths": list(run.stream.row_lengths),
        "microbatches_first_epoch": len(run.stream.plan(0)),
    }
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    return result | ({"validation_loss": validation[-1]} if validation else {})


def _write_outputs(spec: TrainSpec, config: ModelConfig, state: TrainState, result: dict[str, Any]) -> None:
    """Adapter or model into the output folder; ``result.json`` last, as the sign that all of it is there."""
    folder = spec.output_dir
    if spec.trainable == "lora":
        save_adapter(state.trainable, folder, spec.lora, spec.model.resolve().name)
    else:
        copy_tokenizer(spec.model, folder)
        save_params(state.trainable, config, folder, jnp.dtype(spec.dtype))
    write_json(folder / "result.json", result)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy what a model folder has beside its weights and config: a trained model keeps its tokenizer."""
    if source.resolve() == folder.resolve():
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes((source / name).read_bytes())


def main(spec: TrainSpec) -> int:
    """The command: 0 done, 1 the loss diverged, 143 stopped by SIGTERM with the state saved."""
    try:
        train(spec)
    except DivergedError as err:
        print(f"error: {err}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    run_command(TrainSpec, main)
