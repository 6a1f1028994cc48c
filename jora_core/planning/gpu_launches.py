"""What a compiled GPU program launches, read from XLA's list of thunks.

A thunk is one thing that the host tells the device to do: a kernel, a copy, a library call. XLA writes the
list of a program to its dump (`*.thunk_sequence.txt`), loops and branches with their thunks indented below.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(r"^(?P<indent>\s*)\d+: (?P<kind>k\w+)\s+\[[^\]]*\]\s*(?P<rest>.*)$")
_HEADING = re.compile(r"^(?P<indent>\s*)(?P<part>\w+):\s*$")
_SHARED = re.compile(r"shared_memory: (\d+) bytes")
_STEP = 4  # columns that a thunk is indented below its loop or branch


@dataclass(frozen=True)
class Thunk:
    """One thunk of a program.

    Attributes:
        kind: as XLA names it, such as `kCustomKernel` or `kWhile`.
        name: name of the kernel or library call.
        shared_memory: bytes of the kernel's shared memory.
        parts: the thunks inside, by part: `condition` and `body` of a loop, the branches of a conditional,
            "" for a sequence.
    """

    kind: str
    name: str
    shared_memory: int = 0
    parts: dict[str, list[Thunk]] = field(default_factory=dict)


def read_thunks(dump: Path) -> list[Thunk]:
    """Read the thunks of the program that was dumped into a folder (`xla_dump_to`).

    Raises:
        ValueError: the folder does not hold exactly one program.
    """
    files = sorted(dump.glob("*.thunk_sequence.txt"))
    if len(files) != 1:
        raise ValueError(f"{dump}: expected the dump of one GPU program, found {len(files)}")
    return parse_thunks(files[0].read_text())


def parse_thunks(text: str) -> list[Thunk]:
    """Parse the text of a list of thunks."""
    top: list[Thunk] = []
    parents: list[Thunk] = []  # the thunk that was read last, after those around it
    part_of: list[str] = []  # the part of each parent that lines are added to
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading:
            # The heading of a condition is not indented. It follows the line of its loop.
            if heading["part"] != "condition":
                depth = (len(heading["indent"]) - _STEP // 2) // _STEP
                del parents[depth + 1 :], part_of[depth + 1 :]
            part_of[-1] = heading["part"]
            continue
        found = _LINE.match(line)
        if found is None:
            continue
        depth = len(found["indent"]) // _STEP
        del parents[depth:], part_of[depth:]
        shared = _SHARED.search(found["rest"])
        name = found["rest"].split(" ", 1)[0]
        thunk = Thunk(found["kind"], name, int(shared[1]) if shared else 0)
        siblings = parents[-1].parts.setdefault(part_of[-1], []) if parents else top
        siblings.append(thunk)
        parents.append(thunk)
        part_of.append("")
    return top


def kernels(thunks: list[Thunk]) -> list[Thunk]:
    """Return all thunks without others inside, those of loops and branches included, each once."""
    found = []
    for thunk in thunks:
        inside = [inner for part in thunk.parts.values() for inner in part]
        found += kernels(inside) if inside else [thunk]
    return found


def count_launches(thunks: list[Thunk], loops: Callable[[int], tuple[float, float]], depth: int = 0) -> float:
    """Return how many launches a program makes.

    Args:
        thunks: the program's thunks.
        loops: for the depth of a loop (0 outermost), its iterations and the share of them that take the
            larger branch of the conditionals in it.
        depth: depth of the thunks.
    """
    total = 0.0
    for thunk in thunks:
        if thunk.kind == "kWhile":
            times, _ = loops(depth)
            body = count_launches(thunk.parts.get("body", []), loops, depth + 1)
            condition = count_launches(thunk.parts.get("condition", []), loops, depth + 1)
            # The condition is computed once more, to find that the loop ends.
            total += times * body + (times + 1) * condition
        elif thunk.kind == "kConditional":
            branches = sorted(count_launches(part, loops, depth) for part in thunk.parts.values())
            share = loops(depth - 1)[1]
            total += share * branches[-1] + (1 - share) * branches[0]
        elif thunk.parts:
            total += sum(count_launches(part, loops, depth) for part in thunk.parts.values())
        else:
            total += 1
    return total
