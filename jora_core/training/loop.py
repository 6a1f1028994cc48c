"""The training loop: steps, evaluations, checkpoints and metrics of a prepared run.

Random choices depend only on (seed, epoch) and (seed, step, microbatch), and the gradient sums are empty
between steps. So a run that was killed and started again ends with the same bits as an uninterrupted run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.batches import Batch, BatchStream
from jora_core.data.prefetch import prefetched
from jora_core.model.answer_loss import Arrays
from jora_core.parallel.devices import peak_memory_bytes
from jora_core.parallel.processes import is_first, preempted
from jora_core.parameters.trees import Params
from jora_core.specs.train import TrainSpec
from jora_core.training.metrics_log import MetricsLog, StepProgress
from jora_core.training.prometheus import open_endpoint
from jora_core.training.reporting.reporters import open_reporters, report_folder
from jora_core.training.train_step import StepMetrics, Sums, TrainState, TrainStep
from jora_core.training.training_checkpoints import Checkpoints, Position, run_digest

# Records named in the message of a diverged step, which may have hundreds.
_NAMED_IDS = 20
# Steps over which the shown tokens per second are a mean.
_RATE_ROWS = 8
# Function of the step number that returns whether the run must end because of SIGTERM.
_StopAfter = Callable[[int], bool]


class DivergedError(RuntimeError):
    """The loss became NaN or infinite. The message names the step and the step's records."""


class Interrupted(SystemExit):
    """The run stopped after SIGTERM with saved state.

    The exit code is 143, as for a process that SIGTERM has ended.
    """

    def __init__(self) -> None:
        super().__init__(143)


@dataclass(frozen=True)
class Run:
    """The constant parts of a training run.

    Attributes:
        steps: number of steps of the whole run.
        stream: the training microbatches.
        validation: the validation microbatches, None without a validation split.
        step: the compiled functions of a training step.
        frozen: the base weights of an adapter, None where all weights are trained.
    """

    spec: TrainSpec
    config: ModelConfig
    steps: int
    stream: BatchStream
    validation: BatchStream | None
    step: TrainStep
    frozen: Params | None


@dataclass
class _UnreadStep:
    """A started step whose metrics are read after the start of the next step."""

    number: int
    metrics: StepMetrics
    ids: tuple[str, ...]
    groups: int
    slots: int
    slots_apart: int
    supervised: int


def run_loop(
    run: Run, state: TrainState, lines: list[str], verbose: bool
) -> tuple[TrainState, dict[str, Any]]:
    """Train from the newest checkpoint, or from `state`, to the end.

    Args:
        run: the constant parts of the run.
        state: training state of step 0.
        lines: messages from before the loop, shown with the progress.
        verbose: show progress on standard error.

    Returns:
        The state with the resulting weights, and the content of ``result.json``.

    Raises:
        DivergedError: the loss became NaN or infinite.
        Interrupted: SIGTERM came; the state was saved.
    """
    spec = run.spec
    digest = run_digest(spec)
    checkpoints = Checkpoints(spec.checkpoint_dir, digest, spec.keep_checkpoints, spec.keep_best)
    # The checkpoint is restored before the log is opened, since the log drops later rows.
    resumed = checkpoints.restore(state)
    state, position = resumed or (state, Position())
    # All processes have the same metrics; one of them reports.
    writers = open_endpoint(digest, run.steps, lines.append) if is_first() else []
    writers += open_reporters(
        spec.report_to if is_first() else [],
        report_folder(spec),
        digest,
        position.step,
        spec.model_dump(mode="json", exclude={"report_tags"}),
        spec.report_tags,
    )
    log = MetricsLog(
        spec.output_dir / "metrics.jsonl",
        spec.checkpoint_dir / "metrics.jsonl",
        position.step,
        writers,
        writes=is_first(),
    )
    progress = StepProgress(run.steps, position.step, verbose)
    for line in lines:
        progress.say(line)
    if checkpoints.fresh_because:
        progress.say(f"checkpoints: starting anew in {spec.checkpoint_dir}, {checkpoints.fresh_because}")
    for line in checkpoints.damage:
        progress.say(f"warning: {line}; training continues from an earlier state, with the same result")
    if position.step:
        progress.say(f"checkpoints: resuming after step {position.step} of {run.steps}")
    if position.step < run.steps:
        # A large model is silent for minutes here.
        progress.say("compiling the training step, unless it is in the cache")
    meter = _Meter(log, progress)
    try:
        with _terminated() as stop:
            state, position = _steps(run, state, position, checkpoints, meter, stop)
        found = position.early_stopping
        if spec.keep_best and found.best_step != position.step:
            best = checkpoints.restore(state, found.best_step)
            assert best is not None
            state = best[0]
            progress.say(
                f"keep_best: the weights are those of step {found.best_step}, "
                f"validation loss {found.best_loss:.4f}"
            )
    finally:
        # Checkpoints are written in the background: closing waits for the last one, also after SIGTERM.
        checkpoints.close()
        log.close()
        progress.close()
    result = _result(run, log, position)
    return state, result | ({"damaged_checkpoints": checkpoints.damage} if checkpoints.damage else {})


def _steps(
    run: Run, state: TrainState, position: Position, checkpoints: Checkpoints, meter: _Meter, stop: _StopAfter
) -> tuple[TrainState, Position]:
    """Train from a position to the last step. A step's metrics are read while the next one is computed."""
    spec = run.spec
    patience = spec.early_stopping_patience
    # A run that stopped early and is started again must not train on.
    if position.early_stopping.stops(patience):
        return state, position
    # The stream has no end: without a bound the thread would build batches that no step takes.
    microbatches = (run.steps - position.step) * spec.gradient_accumulation_steps
    walk = itertools.islice(run.stream.walk(position.epoch, position.index), microbatches)
    sums = run.step.zero(state)
    pending: _UnreadStep | None = None
    evaluate_every = spec.evaluate_every or spec.checkpoint_every
    # Batches are built and copied to the device by a thread, while the device computes.
    with prefetched((at, batch, run.step.place(batch)) for at, batch in walk) as ready:
        for number in range(position.step + 1, run.steps + 1):
            state, sums, new, (epoch, index) = _one_step(run, state, sums, ready, number)
            position = Position(number, epoch, index, position.early_stopping)
            # The metrics of the step before. To read those of the step that has just been started would wait
            # for it, and the device would then wait for the next batch.
            if pending is not None:
                meter.write(meter.read(pending))
            pending = new
            last = number == run.steps
            evaluates = run.validation is not None and (last or number % evaluate_every == 0)
            # Of several processes each must call this at every step, since they decide together.
            stopping = stop(number)
            saves = last or stopping or number % spec.checkpoint_every == 0
            if not (evaluates or saves):
                continue
            # Read the metrics first: a state with NaN must never replace a good checkpoint.
            row = meter.read(pending)
            pending = None
            if evaluates:
                loss = row["validation_loss"] = validation_loss(run, state, number)
                evaluated = position.early_stopping.after(number, loss, spec.early_stopping_min_delta)
                position = dataclasses.replace(position, early_stopping=evaluated)
                # The best weights must be on disk before later steps replace them.
                saves |= spec.keep_best and evaluated.best_step == number
                last |= evaluated.stops(patience)
            # The row before the checkpoint: a resumed run keeps the rows up to its checkpoint.
            meter.write(row)
            if saves or last:
                checkpoints.save(state, position)
            if last:
                break
            if stopping:
                meter.say(f"stopped by SIGTERM after step {number}; the same spec resumes here")
                raise Interrupted
    if position.step < run.steps:
        meter.say(
            f"early stopping after step {position.step} of {run.steps}: no better validation loss in "
            f"{position.early_stopping.without_improvement} evaluations, the best was "
            f"{position.early_stopping.best_loss:.4f} after step {position.early_stopping.best_step}"
        )
    return state, position


def _one_step(
    run: Run,
    state: TrainState,
    sums: Sums,
    ready: Iterator[tuple[tuple[int, int], Batch, Arrays]],
    number: int,
) -> tuple[TrainState, Sums, _UnreadStep, tuple[int, int]]:
    ids: list[str] = []
    groups = slots = slots_apart = supervised = 0
    at = (0, 0)
    for microbatch in range(run.spec.gradient_accumulation_steps):
        at, batch, placed = next(ready)
        sums = run.step.accumulate(sums, state, run.frozen, placed, microbatch)
        ids.extend(batch.ids)
        groups += batch.groups
        slots += batch.slots
        slots_apart += batch.slots_apart
        supervised += batch.supervised
    state, sums, metrics = run.step.update(state, sums)
    # Only numbers of the batches are kept, so their arrays on the device are freed at once.
    pending = _UnreadStep(number, metrics, tuple(ids), groups, slots, slots_apart, supervised)
    return state, sums, pending, at


def validation_loss(run: Run, state: TrainState, number: int) -> float:
    """Compute the mean loss of the validation split with the current weights, without dropout.

    Args:
        run: the constant parts of the run, with a validation stream.
        state: training state with the weights to evaluate.
        number: number of finished steps, for the error message.

    Raises:
        DivergedError: the loss is NaN or infinite.
    """
    stream = run.validation
    assert stream is not None
    loss = weight = 0.0
    with prefetched(run.step.place(stream.build(plan)) for plan in stream.plan(0)) as ready:
        for placed in ready:
            sums = run.step.evaluate(state, run.frozen, placed)
            # Added on the host in float64; float32 would lose digits over many batches.
            loss += float(sums[0])
            weight += float(sums[1])
    # The bound is for a validation split without any supervised token.
    mean = loss / max(weight, 1e-9)
    if not math.isfinite(mean):
        raise DivergedError(f"step {number}: validation loss {mean}, while the training loss is a number")
    return mean


class _Meter:
    """Reader of finished steps' metrics, which ends the run if the loss is NaN or infinite."""

    def __init__(self, log: MetricsLog, progress: StepProgress) -> None:
        self._log = log
        self._progress = progress
        self._since = time.perf_counter()
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RATE_ROWS)

    def read(self, pending: _UnreadStep) -> dict[str, Any]:
        """Wait for the device and return the metrics of a step as a row.

        Raises:
            DivergedError: loss or gradient norm is NaN or infinite. The message names the step's records.
        """
        # One transfer for all scalars.
        metrics = jax.device_get(pending.metrics)
        loss = float(metrics.loss)
        # A gradient may overflow while the loss is finite. The update has then already damaged the weights.
        if not (math.isfinite(loss) and math.isfinite(float(metrics.grad_norm))):
            named = ", ".join(pending.ids[:_NAMED_IDS])
            more = f" and {len(pending.ids) - _NAMED_IDS} more" if len(pending.ids) > _NAMED_IDS else ""
            raise DivergedError(
                f"step {pending.number}: loss {loss}, gradient norm {float(metrics.grad_norm)}; "
                f"the step's records: {named}{more}"
            )
        seconds = time.perf_counter() - self._since
        self._recent.append((pending.slots, seconds))
        # A mean over several rows: two steps may be read right after one another, the second in no time.
        rate = sum(slots for slots, _ in self._recent) / max(sum(took for _, took in self._recent), 1e-9)
        return {
            "step": pending.number,
            "loss": loss,
            "supervised_tokens": pending.supervised,
            "tokens": pending.slots,
            "tokens_saved": pending.slots_apart - pending.slots,
            "groups": pending.groups,
            "records": len(pending.ids),
            "seconds": round(seconds, 6),
            "tokens_per_s": round(rate, 1),
            "grad_norm": float(metrics.grad_norm),
            "learning_rate": float(metrics.learning_rate),
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def write(self, row: dict[str, Any]) -> None:
        """Write a row to the log and the display, and start the time of the next step.

        So a step's time contains no evaluation.
        """
        self._log.write(row)
        self._progress.step(row)
        self._since = time.perf_counter()

    def say(self, line: str) -> None:
        """Print a message line."""
        self._progress.say(line)


@contextmanager
def _terminated() -> Iterator[_StopAfter]:
    """Yield a function that returns after each step whether the run must stop because of SIGTERM.

    Python handles signals only in the main thread; in other threads the function always returns False. Any of
    several processes may get the signal. All of them must leave the loop after the same step, or the others
    would wait forever in a collective.
    """
    if jax.process_count() > 1:
        yield preempted
        return
    received = threading.Event()

    def stop(number: int) -> bool:
        return received.is_set()

    try:
        before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    except ValueError:
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _result(run: Run, log: MetricsLog, position: Position) -> dict[str, Any]:
    rows = log.rows
    result = {
        "steps": position.step,
        "final_loss": rows[-1]["loss"],
        "mean_loss_last_10": sum(row["loss"] for row in rows[-10:]) / len(rows[-10:]),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "tokens": sum(row["tokens"] for row in rows),
        "tokens_saved": sum(row["tokens_saved"] for row in rows),
        "records_per_group": sum(row["records"] for row in rows) / sum(row["groups"] for row in rows),
        "supervised_tokens": sum(row["supervised_tokens"] for row in rows),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "row_lengths": list(run.stream.row_lengths),
        "microbatches_first_epoch": len(run.stream.plan(0)),
    }
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    if not validation:
        return result
    return result | {
        "validation_loss": validation[-1],
        "best_validation_loss": position.early_stopping.best_loss,
        "best_step": position.early_stopping.best_step,
        "weights_of_step": position.early_stopping.best_step if run.spec.keep_best else position.step,
        "stopped_early": position.step < run.steps,
    }
