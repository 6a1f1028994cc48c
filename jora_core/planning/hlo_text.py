"""Read a compiled program's text (HLO): its instructions, how often each runs, its collectives.

Loops whose trip count XLA knows multiply what is inside: a collective in the body of the loop over L layers
counts L times. A loop with a count known only at run time counts once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\}?\)? ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|body|to_apply|condition)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":?\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")
_BITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Array:
    """Element type and shape of one result."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in memory, without padding."""
        bits = _BITS.search(self.dtype)
        return self.elements * (max(int(bits[0]), 8) // 8 if bits else 1)


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, opcode, results, the source operation, the computations it calls.

    `trips` is a loop's known count, else 1; `group` the devices that a collective joins, 0 for all.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    op_name: str
    calls: tuple[str, ...]
    trips: int
    group: int
    root: bool


@dataclass(frozen=True)
class Program:
    """Instructions by computation; `entry` names the first, `devices` are those it is split over."""

    computations: dict[str, list[Instruction]]
    entry: str
    devices: int = 1

    @cached_property
    def named(self) -> dict[str, Instruction]:
        """Instructions by name, which is unique in a module."""
        return {i.name: i for body in self.computations.values() for i in body}

    def walk(self) -> Iterator[tuple[Instruction, int, int]]:
        """Every instruction that is run by itself, with (times in all, trips of its innermost known loop)."""
        return self._walk(self.entry, 1, 1)

    def _walk(self, name: str, times: int, loop: int) -> Iterator[tuple[Instruction, int, int]]:
        for instruction in self.computations.get(name, ()):
            yield instruction, times, loop
            # What is inside a fusion, or applied to scalars by a reduction, makes no array of its own.
            if instruction.opcode not in ("while", "call", "conditional", "async-start"):
                continue
            trips = instruction.trips
            for called in instruction.calls:
                yield from self._walk(called, times * trips, trips if trips > 1 else loop)

    def makes(self, instruction: Instruction, opcode: str) -> bool:
        """Whether an instruction is of this kind, alone or inside of the fusion that it calls."""
        if instruction.opcode == opcode:
            return True
        return instruction.opcode in ("fusion", "call") and any(
            inner.opcode == opcode
            for called in instruction.calls
            for inner in self.computations.get(called, ())
        )


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind and size: `elements` and `bytes` of the unsplit array, runs `count` times."""

    kind: str
    dtype: str
    elements: int
    bytes: int
    count: int
    loop: int
    op_name: str


def parse_program(text: str) -> Program:
    """Read the text of a compiled module (`compiled.as_text()`)."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(found[2], found[3], bool(found[1])))
    devices = re.search(r"num_partitions=(\d+)", text[:100_000])
    return Program(computations, entry, int(devices[1]) if devices else 1)


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    opcode = _OPCODE.search(" " + rest if rest[:1] != "(" else rest)
    results = rest[: opcode.start()] if opcode else rest
    calls = []
    for one, several in _CALLS.findall(rest):
        calls += [one] if one else [part.strip().lstrip("%") for part in several.split(",")]
    trips = _TRIPS.search(rest)
    op_name = _OP_NAME.search(rest)
    groups = _GROUPS.search(rest)
    group = 0
    if groups:
        group = len(groups[1].split(",")) if groups[1] else int(groups[3])
    return Instruction(
        name=name,
        opcode=opcode[1] if opcode else "",
        results=tuple(
            Array(dtype, tuple(int(n) for n in dims.split(",") if n))
            for dtype, dims in _ARRAY.findall(results)
        ),
        op_name=op_name[1] if op_name else "",
        calls=tuple(calls),
        trips=int(trips[1]) if trips else 1,
        group=group,
        root=root,
    )


def collectives(program: Program) -> list[Collective]:
    """All collectives that move something between devices, the same ones of one loop taken together."""
    found: dict[tuple[str, str, int, int], Collective] = {}
    for instruction, times, loop in program.walk():
        kind = instruction.opcode.removesuffix("-start")
        group = instruction.group or program.devices
        if kind not in COLLECTIVES or group == 1:
            continue
        arrays = instruction.results
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]  # (operands…, results…)
        scale = group if kind == "reduce-scatter" else 1
        elements = sum(array.elements for array in arrays) * scale
        size = sum(array.bytes for array in arrays) * scale
        key = (kind, arrays[0].dtype, elements, loop)
        before = found[key].count if key in found else 0
        found[key] = Collective(
            kind, arrays[0].dtype, elements, size, before + times, loop, instruction.op_name
        )
    return sorted(found.values(), key=lambda c: -c.bytes * c.count)


def unsplit_rows(program: Program, width: int, rows: int) -> list[Instruction]:
    """Instructions that make an array with a whole axis of `width` and at least `rows` of them beside it."""
    return [
        instruction
        for instruction, _, _ in program.walk()
        if instruction.opcode != "parameter"
        and any(width in a.shape and a.elements >= rows * width for a in instruction.results)
    ]
