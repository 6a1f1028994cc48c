"""Run one command of the training core as a child process: ``python -m jora_core.commands.<module> --spec
SPEC.json``.

The end of the child frees the device memory. A crash or an out-of-memory error in the child does not end the
pipeline, whose process never imports JAX. The child runs under :mod:`flows.children.supervisor` in a session
of its own. The child and all its helper processes are killed at any end of this call, and when this process
is killed with -9.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from flows.children import supervised_process
from flows.children.launcher import launch_command
from jora_core.base.errors import InputError
from jora_core.base.secrets import child_environment, mask, references

TAIL_LINES = 40
GRACE_SECONDS = 30.0  # for a checkpoint after SIGTERM
# SIGKILL comes from the kernel's out-of-memory killer or a scheduler, and SIGTERM from a shutdown.
KILLED_STATUSES = frozenset({128 + signal.SIGKILL, 128 + signal.SIGTERM})
ERROR_MARK = "error: "
_ERROR_LINE = re.compile(rb"(?m)^error: [^\n]*\n")
# XLA's status name on GPUs, the text of its CPU allocator, Python's own exception.
OUT_OF_MEMORY_MARKS = ("RESOURCE_EXHAUSTED", "Out of memory", "MemoryError")

logger = logging.getLogger("jora.child")
# State of the process, not of one call: a signal ends the child processes of all threads.
_stop_all = threading.Event()
_running: list[supervised_process.Supervised] = []
# Seconds without output after which a child is ended; one setting for all children of this process.
_most_silence: list[float] = [0.0]


class Spec(Protocol):
    """The parts of a command's spec that :func:`run_child` uses."""

    output_dir: Path

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """Return the specification as JSON."""
        ...


class ChildError(RuntimeError):
    """A child process ended without a result.

    Attributes:
        status: exit status of the child.
        tail: last lines of its output.
    """

    def __init__(self, message: str, status: int = 1, tail: str = "") -> None:
        super().__init__(mask(message))
        self.status = status
        self.tail = tail

    def __reduce__(self) -> tuple[Any, ...]:
        # Prefect and Dask pickle exceptions. The default rebuilds them from the message alone and would
        # lose status and tail.
        return type(self), (str(self), self.status, self.tail)


class ChildFailed(ChildError):
    """The child failed with exit status 1 or crashed. The same spec may fail again."""

    @property
    def out_of_memory(self) -> bool:
        """Whether the child's last lines say that host or device memory ran out."""
        return any(mark in self.tail for mark in OUT_OF_MEMORY_MARKS)


class ChildKilled(ChildError):
    """The child was ended from outside by SIGTERM or SIGKILL. A retry resumes from its checkpoint."""


class ChildInputError(InputError):
    """The child refused its input (exit status 2). The message is the child's error line."""


def run_child(
    module: str,
    spec: Spec,
    workdir: Path,
    *,
    env: dict[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    on_output: Callable[[str], None] | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> dict[str, Any]:
    """Run ``python -m jora_core.commands.<module>`` on ``spec`` and return its ``result.json``.

    Args:
        module: name of a command of the training core, or a dotted module name.
        spec: spec of the command. The child writes ``result.json`` to its `output_dir`.
        workdir: folder for the file of the spec.
        env: variables to add to the environment.
        on_line: called with each line of the child's output, unless our stderr is a terminal, where the child
            draws its progress bars. Default: the Prefect run's logger inside a run, else the ``jora.child``
            logger.
        on_output: called in this thread with each line of the child's standard output, while the child runs.
            ``on_line`` then receives the standard error alone.
        grace_seconds: seconds from SIGTERM to SIGKILL at an early end, in which the child writes a
            checkpoint.

    Raises:
        InputError: the launcher of the environment is not a program.
        ChildInputError: the child refused its input.
        ChildKilled: the child was ended from outside. A retry resumes from its checkpoint.
        ChildFailed: the child failed, or wrote no readable ``result.json``.
    """
    if stopping():
        raise ChildKilled(f"{module} was not started: the pipeline is ending", 128 + signal.SIGTERM)
    workdir.mkdir(parents=True, exist_ok=True)
    spec_path = workdir / f"{module}.spec.json"
    # The file is kept, so that a user can start the same command by hand.
    # With references in place of values from the environment, which the child fills in again.
    spec_path.write_text(references(spec.model_dump_json(indent=2)), encoding="utf-8")
    target = module if "." in module else f"jora_core.commands.{module}"
    status, tail = _supervised(
        launch_command(module, supervised_process.python_module(target, "--spec", str(spec_path))),
        env={**child_environment(), **(env or {})},
        on_line=on_line or log_line(),
        on_output=on_output,
        grace_seconds=grace_seconds,
    )
    if status == 0:
        return _read_result(Path(spec.output_dir) / "result.json", target, tail)
    # Checked before signals and failures: a wrong input must not be retried.
    if status == 2:
        raise ChildInputError(_error_line(tail) or f"{target} refused its input: {_last(tail)}")
    if status in KILLED_STATUSES:
        raise ChildKilled(f"{target} was ended by signal {status - 128}", status, tail)
    failure = ChildFailed(f"{target} failed with exit status {status}: {_last(tail)}\n{tail}", status, tail)
    if failure.out_of_memory:
        hint = "lower data.tokens_per_batch and raise gradient_accumulation_steps by the same factor"
        failure = ChildFailed(f"{target} ran out of memory ({hint})\n{tail}", status, tail)
    raise failure


def limit_silence(seconds: float) -> None:
    """End each child of this process that says nothing for so many seconds; 0 waits without end.

    The child gets SIGTERM and the time for a checkpoint, so a retry goes on from there.
    """
    _most_silence[0] = seconds


def stopping() -> bool:
    """Whether the pipeline is ending its child processes, so that no retry is useful."""
    return _stop_all.is_set()


@contextmanager
def children_end_with_block() -> Iterator[None]:
    """End the child processes of all threads when an exception leaves the block.

    A signal interrupts the main thread only. Otherwise the thread of a task would still wait for its child,
    and the interpreter for the thread. Each child gets SIGTERM and the time for a checkpoint.
    """
    _stop_all.clear()
    try:
        yield
    except BaseException:
        _stop_all.set()
        # Each thread removes its child after the child's end, so an empty list means that all have ended.
        while _running:
            time.sleep(supervised_process.POLL_SECONDS)
        raise


def _supervised(
    command: list[str],
    env: dict[str, str],
    on_line: Callable[[str], None],
    on_output: Callable[[str], None] | None,
    grace_seconds: float,
) -> tuple[int, str]:
    """Run ``command`` under the supervisor; return its exit status (128 + n for signal n) and last lines."""
    # Bounded: a training of days writes more lines than an exception can hold.
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    said: SimpleQueue[str] = SimpleQueue()
    heard = [time.monotonic()]  # when the child last wrote something

    def hear(line: str) -> None:
        heard[0] = time.monotonic()
        said.put(line)

    # Read in threads, because a read would block this thread, which watches the child and the stop event.
    output_read, output_write, terminal = _output_channel()
    threads = [
        threading.Thread(target=_relay, args=(output_read, terminal, tail, on_line, heard), daemon=True)
    ]
    own, stdout = [output_read], None
    if on_output:
        stdout_read, stdout = os.pipe()
        own.append(stdout_read)
        threads.append(threading.Thread(target=_read_lines, args=(stdout_read, hear), daemon=True))
    silent = False
    try:
        try:
            child = supervised_process.start(command, env, output_write, stdout)
        finally:
            # The child has its own copy. While ours is open, the reader never sees the end of the file.
            for end in (output_write, *([] if stdout is None else [stdout])):
                os.close(end)
        _running.append(child)
        try:
            for thread in threads:
                thread.start()
            while not child.ended() and not _stop_all.wait(supervised_process.POLL_SECONDS):
                _hand_over(said, on_output)
                silent = 0 < _most_silence[0] < time.monotonic() - heard[0]
                if silent:
                    break
        finally:
            status = child.end(grace_seconds)
            _running.remove(child)
            for thread in threads:
                # With a time limit, because a helper that left the process group may keep the pipe open.
                thread.join(timeout=5)
        _hand_over(said, on_output)
    finally:
        for end in own:
            os.close(end)
    if silent:
        raise ChildKilled(
            f"{command[3]} made no progress for {_most_silence[0]:g} s and was ended; a retry goes on from "
            "its checkpoint, and retries.no_progress_seconds sets the time",
            status,
            "\n".join(tail),
        )
    return status, "\n".join(tail)


def _hand_over(said: SimpleQueue[str], on_output: Callable[[str], None] | None) -> None:
    """Call ``on_output`` with each line that has arrived so far."""
    while on_output and not said.empty():
        on_output(said.get())


def _read_lines(source: int, take: Callable[[str], None]) -> None:
    """Call ``take`` with each whole line of a pipe until the end of the pipe."""
    rest = b""
    while chunk := _read(source):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            take(line.decode("utf-8", "replace"))


def _output_channel() -> tuple[int, int, bool]:
    """Return (read end, write end, is a terminal) for the child's output: a terminal if our stderr is one."""
    if not sys.stderr.isatty():
        return *os.pipe(), False
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    # A new pseudo-terminal has zero columns, and progress bars would be cut to nothing.
    size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST  # our own terminal turns "\n" into "\r\n"
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    return master, slave, True


def _relay(
    source: int, terminal: bool, tail: deque[str], on_line: Callable[[str], None], heard: list[float]
) -> None:
    """Copy the child's output, as raw bytes to a terminal or else line by line to ``on_line``.

    The ``error: …`` line of the child is not copied. It becomes the message of the exception.
    """
    rest = b""
    while chunk := _read(source):
        heard[0] = time.monotonic()
        if terminal:
            # Without Python's buffer, because the control sequences of the bars must not be delayed.
            shown = mask(_ERROR_LINE.sub(b"", chunk).decode("utf-8", "surrogateescape"))
            os.write(sys.stderr.fileno(), shown.encode("utf-8", "surrogateescape"))
        # A bar redrawn over itself with "\r" is one line for the log: its last state.
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _take(line, terminal, tail, on_line)
    if rest:
        _take(rest, terminal, tail, on_line)


def _take(line: bytes, terminal: bool, tail: deque[str], on_line: Callable[[str], None]) -> None:
    text = mask(line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2].rstrip())
    if text:
        tail.append(text)
        if not terminal and not text.startswith(ERROR_MARK):
            on_line(text)


def _read(source: int) -> bytes:
    try:
        return os.read(source, 65536)
    except OSError:  # a pseudo-terminal whose other end is closed gives EIO, not an empty read
        return b""


def log_line() -> Callable[[str], None]:
    """Return a function that logs a line of progress, in a Prefect task with the name of the task."""
    if not inside_flow_run():
        return logger.info
    from prefect.context import TaskRunContext
    from prefect.logging import get_run_logger

    context, run_logger = TaskRunContext.get(), get_run_logger()
    # Stage and key: the UI shows the lines of all tasks in one list, without their tasks.
    name = f"{context.task_run.name}: " if context is not None else ""
    return lambda line: run_logger.info("%s%s", name, line)


def inside_flow_run() -> bool:
    """Whether this code runs in a Prefect task or flow."""
    # A lookup in `sys.modules` is free. An import would load Prefect into commands that do not need it.
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def _read_result(path: Path, target: str, tail: str) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ChildFailed(f"{target} ended well but left no readable {path}: {error}", 0, tail) from error
    # The manifest stores the result as an object of metrics.
    if not isinstance(result, dict):
        raise ChildFailed(f"{target} wrote {path}, which is not a JSON object", 0, tail)
    return result


def _error_line(tail: str) -> str | None:
    """Return the child's last ``error: …`` line without the mark."""
    lines = [line for line in tail.splitlines() if line.startswith(ERROR_MARK)]
    # The last one, because earlier lines may come from a library that writes the same mark.
    return lines[-1].removeprefix(ERROR_MARK) if lines else None


def _last(tail: str) -> str:
    return tail.splitlines()[-1] if tail else "no output"
