"""What the side-by-side measurements share: workers that take turns, medians, memory, one form of result.

Each side of a comparison is a process of its own. All of them stay alive through one run and take turns step
by step (A B A B), so that a machine which slows down or is disturbed hits every side alike; whoever is not at
turn sleeps on its pipe. A script's own process imports neither JAX nor torch.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
SIDE_SCRIPTS = Path(__file__).resolve().parent / "sides"
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "peft", "numpy")
# Between two turns: threads of the side that just finished spin for some milliseconds before they sleep.
_PAUSE = 0.05


class WorkerFailed(RuntimeError):
    """A worker ended or answered with an error; the message holds the end of what it printed."""


class Worker:
    """One side of a comparison: a Python script that answers requests, a JSON line each (`serve`)."""

    def __init__(self, name: str, script: Path, settings: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Start the process and send its settings; it builds its model while others are started.

        Args:
            env: added to this process's environment.
        """
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        # A side lies in a folder of its own, and imports this module and its neighbours as a benchmark does.
        own = (str(ROOT), str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", ""))
        paths = os.pathsep.join(filter(None, own))
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, **env},
        )
        self._send(dict(settings))

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            WorkerFailed: the process ended.
        """
        self._send({"do": do, **request})
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; the first one, unasked, says that the model is built."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            tail = "".join(self._log.readlines()[-30:])
            raise WorkerFailed(f"{self.name} ended with exit code {code}\n{tail}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process, from any thread: who waits for its answer gets `WorkerFailed`."""
        self._process.kill()

    def close(self) -> None:
        """End the process and wait for it, so that its memory is free for the next."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process is gone; `answer` reads its exit code and last words


def serve(build: Callable[[dict[str, Any]], dict[str, Callable[..., dict[str, Any]]]]) -> None:
    """A worker's main function: build from the settings on stdin, then answer requests until stdin ends.

    Args:
        build: settings → functions by name of request, each of which returns its answer.
    """
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not look like an answer
    settings = json.loads(sys.stdin.readline())
    functions = _guarded(pipe, lambda: build(settings))
    if functions is None:
        return
    _reply(pipe, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        function = functions[request.pop("do")]
        answer = _guarded(pipe, lambda: function(**request))  # noqa: B023 - called at once
        if answer is not None:
            _reply(pipe, answer)


def _guarded(pipe: TextIO, call: Callable[[], Any]) -> Any:
    """Result of a call; None when the device's memory ran out, which is an answer and not a failure."""
    try:
        return call()
    except (RuntimeError, MemoryError) as err:
        text = str(err)
        if not ("RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()):
            raise
        _reply(pipe, {"error": "out of memory"})
        return None


def _reply(pipe: TextIO, answer: dict[str, Any]) -> None:
    pipe.write(json.dumps(answer) + "\n")
    pipe.flush()


def take_turns(workers: Sequence[Worker], rounds: int, first: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Let the workers do one step each, in order, `rounds` times; steps are numbered from `first`.

    Returns:
        Each worker's answers. One that ran out of memory stops there: its last answer has "error".
    """
    turns: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
    for step in range(first, first + rounds):
        for worker in workers:
            mine = turns[worker.name]
            if mine and "error" in mine[-1]:
                continue
            mine.append(worker.ask("step", step=step))
            time.sleep(_PAUSE)
    return turns


def at_least_one(text: str) -> int:
    """Command-line value: a whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def check_losses(losses: Mapping[str, Sequence[float]], tolerance: float) -> float:
    """The largest relative difference between the sides' losses, step by step.

    Raises:
        SystemExit: it is above `tolerance`: the sides do not compute the same, so timing means nothing.
    """
    worst = 0.0
    for step in zip(*losses.values(), strict=True):
        gap = (max(step) - min(step)) / max(abs(min(step)), 1e-9)
        if not all(map(math.isfinite, step)) or gap > tolerance:
            raise SystemExit(
                f"the sides disagree, losses {step} (at most {tolerance:.0e} apart): {dict(losses)}"
            )
        worst = max(worst, gap)
    return worst


def median(turns: Sequence[Mapping[str, Any]], field: str = "seconds") -> float:
    """Median of one field of the answers."""
    return statistics.median(turn[field] for turn in turns)


def resident_bytes() -> int:
    """Resident set of this process now."""
    return _status("VmRSS") or peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far, or since `forget_peak`."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> bool:
    """Begin the peak anew from what is in use now (Linux with glibc); False where that cannot be done."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what compiling has freed would stay resident
    except AttributeError:
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    """One line of /proc/self/status in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


class HostMemory:
    """Resident memory of this process above what its imports took; make it right after them."""

    def __init__(self) -> None:
        self._imports = resident_bytes()
        self._before: int | None = None

    def warm(self) -> dict[str, Any]:
        """Note the peak of building and compiling, and begin that of the timed steps."""
        self._before = peak_resident_bytes()
        return {"forgotten": forget_peak()}

    def report(self) -> dict[str, Any]:
        """Bytes: after imports, peak of all, the difference; with `warm` also that of the timed steps."""
        steps = peak_resident_bytes()
        peak = max(steps, self._before or 0)
        about = {
            "imports_bytes": self._imports,
            "peak_bytes": peak,
            "peak_above_imports_bytes": peak - self._imports,
        }
        return about if self._before is None else about | {"steps_above_imports_bytes": steps - self._imports}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What a reader must know of the machine: processor, cores, memory, load, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return {
        "processor": name,
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
    }


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Rows of text as a table, columns as wide as needed."""
    if not rows:
        return
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in ({key: key for key in widths}, *rows):
        print("  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip(), flush=True)


def write_result(
    path: Path | None,
    about: dict[str, Any],
    settings: dict[str, Any],
    results: list[dict[str, Any]],
    ratios: dict[str, float],
) -> None:
    """Write ``{"machine", "settings", "results", "ratios"}``; nothing where no file is asked for."""
    if path is not None:
        data = {"machine": about, "settings": settings, "results": results, "ratios": ratios}
        path.write_text(json.dumps(data, indent=1) + "\n")
