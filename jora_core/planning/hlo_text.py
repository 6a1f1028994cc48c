"""Parser of a compiled program's text (HLO): instructions, the number of their runs, and collectives.

An instruction in a loop counts as often as the loop runs: a collective in the loop over L layers counts L
times. A loop whose trip count is known only at run time counts once.

JAX offers no other way to these numbers: `compiled.cost_analysis()` counts the body of a loop once, and names
no collectives. XLA's own tools exchange HLO text, so its format is stable. Still, `parse_program` fails where
the text has no entry computation or an instruction that it cannot read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")

# Example: ENTRY %main.12 (p0: f32[8]) -> f32[8] {
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
# Example:   ROOT %add.3 = f32[8]{0} add(%a, %b), metadata={op_name="jit(f)/add"}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
# Behind the type of the result, which ends in a layout or, for a tuple, in a parenthesis: f32[8]{0} add( or
# (f32[8]{0}, u32[]) all-gather-start(
_OPCODE = re.compile(r"\}?\)? ([a-z][\w\-]*)\(")
# The operands end before the first attribute, or with the line.
_OPERANDS_END = re.compile(r"\)(?=, [\w\-]+=|\s*$)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|body|to_apply|condition)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
# Example: backend_config={"known_trip_count":{"n":"32"}}
_TRIPS = re.compile(r'known_trip_count":?\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# Two forms: {{0,1},{2,3}} names the devices of each group, [2,4]<=[8] is 2 groups of 4 devices.
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")
_BITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Array:
    """Element type and shape of one array that an instruction makes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding."""
        # The first number of a name is the width, as in bf16 or f8e4m3fn. `pred` has none and takes one byte.
        bits = _BITS.search(self.dtype)
        return self.elements * (max(int(bits[0]), 8) // 8 if bits else 1)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program.

    Attributes:
        name: name, unique in the program.
        opcode: operation, such as ``fusion`` or ``all-reduce``.
        operands: names of the operands.
        results: the arrays that the instruction makes.
        op_name: the JAX operation from which the instruction is compiled.
        calls: names of the called computations.
        trips: known trip count of a loop, else 1.
        group: number of devices in a group of a collective, 0 for all devices.
        root: whether the instruction is the result of its computation.
    """

    name: str
    opcode: str
    operands: tuple[str, ...]
    results: tuple[Array, ...]
    op_name: str
    calls: tuple[str, ...]
    trips: int
    group: int
    root: bool


@dataclass(frozen=True)
class Program:
    """A compiled program: instructions by computation, name of the entry computation, number of devices."""

    computations: dict[str, list[Instruction]]
    entry: str
    devices: int = 1

    @cached_property
    def named(self) -> dict[str, Instruction]:
        """All instructions, by name."""
        return {i.name: i for body in self.computations.values() for i in body}

    def walk(self) -> Iterator[tuple[Instruction, int, int]]:
        """Yield (instruction, total runs, trip count of the innermost loop) for the program's instructions.

        Instructions inside of a fusion or reduction are left out.
        """
        return self._walk(self.entry, 1, 1)

    def _walk(self, name: str, times: int, loop: int) -> Iterator[tuple[Instruction, int, int]]:
        for instruction in self.computations.get(name, ()):
            yield instruction, times, loop
            # Instructions inside a fusion, or applied by a reduction to scalars, make no array of their own.
            if instruction.opcode not in ("while", "call", "conditional", "async-start"):
                continue
            trips = instruction.trips
            for called in instruction.calls:
                yield from self._walk(called, times * trips, trips if trips > 1 else loop)

    def makes(self, instruction: Instruction, opcode: str) -> bool:
        """Return whether an instruction has a given opcode, or calls a fusion with such an instruction."""
        if instruction.opcode == opcode:
            return True
        return instruction.opcode in ("fusion", "call") and any(
            inner.opcode == opcode
            for called in instruction.calls
            for inner in self.computations.get(called, ())
        )


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind and size, with `elements` and `bytes` of the whole array, run `count` times."""

    kind: str
    dtype: str
    elements: int
    bytes: int
    count: int
    loop: int
    op_name: str


def parse_program(text: str) -> Program:
    """Read the text of a compiled module (`compiled.as_text()`).

    Raises:
        RuntimeError: no entry computation, or none of its instructions can be read.
    """
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
    if not computations.get(entry):
        raise RuntimeError(
            "no entry computation found in the text of a compiled program; XLA's text has changed"
        )
    # The attributes of the module are in its first line.
    devices = re.search(r"num_partitions=(\d+)", text[:100_000])
    return Program(computations, entry, int(devices[1]) if devices else 1)


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    line = " " + rest if rest[:1] != "(" else rest
    opcode = _OPCODE.search(line)
    results = line[: opcode.start()] if opcode else line
    end = _OPERANDS_END.search(line, opcode.end()) if opcode else None
    operands = line[opcode.end() : end.start()] if opcode and end else ""
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
        operands=tuple(_OPERAND.findall(operands)),
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
    """Return the collectives between devices, counted together by kind, size and loop."""
    found: dict[tuple[str, str, int, int], Collective] = {}
    for instruction, times, loop in program.walk():
        kind = instruction.opcode.removesuffix("-start")
        # Without groups, as in replica_groups={}, all devices take part.
        group = instruction.group or program.devices
        if kind not in COLLECTIVES or group == 1:
            continue
        arrays = instruction.results
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            # The result of an asynchronous start is the tuple (operands…, results…).
            arrays = arrays[len(arrays) // 2 :]
        # Its result is a device's part of the array; the other kinds result in the whole.
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
    """Return the instructions that make an array of at least `rows` × `width` with an axis of `width`.

    Args:
        program: compiled program of one device.
        width: length of the axis, such as the size of the vocabulary.
        rows: smallest product of the other axes.
    """
    return [
        instruction
        for instruction, _, _ in program.walk()
        # Parameters are weights and batch, whose parts the shardings decide.
        if instruction.opcode != "parameter"
        and any(width in a.shape and a.elements >= rows * width for a in instruction.results)
    ]
