"""Where the time of a compiled CPU program goes, by the part of the model that asked for an operation.

XLA's profiler records each operation by its name in the compiled program, whose text tells the JAX code that
it comes from. Parts of the model are `jax.named_scope`s of `jora_core.model`.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax

KINDS = ("projection", "attention", "lora", "vocabulary", "activation", "norm", "rotary")
OTHER = "other"
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = \S.*?\b(\w[\w-]*)\((.*)$")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"calls=%([\w.-]+)")
# What only contains other operations.
_CONTAINERS = frozenset({"while", "conditional", "call"})


def kinds_of_operations(program: str) -> dict[str, str]:
    """Return the kind of each operation of a compiled program, by name, from the program's text."""
    kinds: dict[str, str] = {}
    unknown: dict[str, tuple[str, str]] = {}  # the computation that an operation is in, and the one it calls
    inside: dict[str, Counter[str]] = {}  # kinds of a computation's operations
    computation = ""
    for line in program.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            continue
        found = _INSTRUCTION.match(line)
        if found is None or found[2] in _CONTAINERS:
            continue
        source = _SOURCE.search(line)
        if source:
            kinds[found[1]] = kind = _kind(source[1])
            inside.setdefault(computation, Counter())[kind] += 1
        else:
            called = _CALLED.search(line)
            unknown[found[1]] = computation, called[1] if called else ""
    # What names no source is of the kind of what it holds, else of what stands around it.
    for name, (around, called) in unknown.items():
        known = inside.get(called) or inside.get(around)
        kinds[name] = known.most_common(1)[0][0] if known else OTHER
    return kinds


def _kind(source: str) -> str:
    """Return the innermost kind that a source names: an adapter's products are inside of a projection."""
    named = [kind for part in source.split("/") for kind in KINDS if re.search(rf"\b{kind}\b", part)]
    return named[-1] if named else OTHER


def seconds_by_kind(run: Callable[[], object], program: str) -> dict[str, float]:
    """Run a program once under the profiler, and return the processor seconds of each kind of operation.

    Args:
        run: runs the compiled program and waits for its end.
        program: the text of the compiled program.
    """
    kinds = kinds_of_operations(program)
    seconds: Counter[str] = Counter()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in kinds:
                        seconds[kinds[event.name]] += event.duration_ns * 1e-9
    return {kind: seconds[kind] for kind in (*KINDS, OTHER)}
