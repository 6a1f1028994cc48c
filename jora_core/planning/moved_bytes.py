"""Bytes that a compiled program's launches read from memory and write to it, counted from its text (HLO).

The rules are those of XLA's cost analysis (`HloCostAnalysis`): a launch reads its operands and writes its
results, each once. An array that is only sliced counts as the slice, and one that is updated in place as the
update. What a cache serves, and what a launch reads more than once, is not known. An asynchronous start
counts all arrays that it names.

XLA's own count (`compiled.cost_analysis()`) runs each loop once, and compilers for GPUs give no count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from jora_core.planning.hlo_text import Instruction, Program

# Instructions that move nothing: names for arrays, and those that only call others.
_NO_LAUNCH = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id"),
    *("after-all", "add-dependency", "opt-barrier", "while", "conditional", "call"),
}
_SLICES = ("slice", "dynamic-slice", "gather")
# Instructions whose result has an element for each one of an operand: of the operand is needed what is needed
# of the result. Others are taken to read whole operands.
_ELEMENTWISE = {
    *("bitcast", "reshape", "transpose", "copy", "convert", "select", "negate"),
    *("add", "subtract", "multiply", "divide", "maximum", "minimum"),
}


def moved_bytes(
    program: Program, loops: Callable[[int], tuple[float, float]], name: str = "", depth: int = 0
) -> float:
    """Return the bytes that all launches of a program read and write.

    Loops and conditionals count as in `jora_core.planning.gpu_launches.count_launches`.

    Args:
        program: the compiled program.
        loops: for the depth of a loop (0 outermost), its iterations and the share of them that take the
            larger branch of the conditionals in it.
        name: computation to begin with; the program's entry if empty.
        depth: depth of that computation.
    """
    total = 0.0
    for instruction in program.computations.get(name or program.entry, ()):
        if instruction.opcode == "while":
            times = loops(depth)[0]
            # XLA writes the condition before the body. The condition is computed once more, at the end.
            condition, body = (moved_bytes(program, loops, part, depth + 1) for part in instruction.calls)
            total += times * body + (times + 1) * condition
        elif instruction.opcode == "conditional":
            branches = sorted(moved_bytes(program, loops, part, depth) for part in instruction.calls)
            share = loops(depth - 1)[1]
            total += share * branches[-1] + (1 - share) * branches[0]
        elif instruction.opcode in ("call", "async-start"):
            total += sum(moved_bytes(program, loops, part, depth) for part in instruction.calls)
        else:
            total += launch_bytes(program, instruction)
    return total


def launch_bytes(program: Program, instruction: Instruction) -> float:
    """Return the bytes that one launch reads and writes, 0 for an instruction that launches nothing."""
    if instruction.opcode in _NO_LAUNCH or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "fusion":
        body = program.computations[instruction.calls[0]]
        sources = [inner.name for inner in body if inner.opcode == "parameter"]
    else:
        body = [replace(instruction, root=True)]
        sources = list(dict.fromkeys(instruction.operands))
    in_place = set()
    written = 0.0
    for result in _results(program, body):
        made = _without_bitcasts(program, result)
        if made.opcode == "dynamic-update-slice":
            in_place.add(made.name)
            made = program.named[made.operands[1]]
        written += _bytes(made)
    needed = _needed_elements(program, body, in_place)
    read = 0.0
    for source in sources:
        array = program.named[source]
        everything = max(_elements(array), 1)
        read += _bytes(array) * min(needed[source] / everything, 1)
    return read + written


def _results(program: Program, body: list[Instruction]) -> list[Instruction]:
    """Return the instructions whose arrays a launch writes."""
    root = next(inner for inner in body if inner.root)
    return [program.named[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _without_bitcasts(program: Program, instruction: Instruction) -> Instruction:
    """Return the instruction that made the array which an instruction may only rename."""
    while instruction.opcode == "bitcast":
        instruction = program.named[instruction.operands[0]]
    return instruction


def _needed_elements(program: Program, body: list[Instruction], in_place: set[str]) -> Counter[str]:
    """Count the elements that a launch needs of each array, with those that it needs twice.

    Args:
        program: the compiled program.
        body: the instructions of the launch, each behind its operands.
        in_place: names of the updates that write into their first operand.
    """
    needed: Counter[str] = Counter()
    for user in reversed(body):
        own = _elements(user)
        wanted = own if user.root else min(needed[user.name], own)
        for place, name in enumerate(user.operands):
            everything = _elements(program.named[name])
            if place == 0 and user.name in in_place:
                continue
            sliced = place == 0 and user.opcode in _SLICES
            if sliced or (user.opcode in _ELEMENTWISE and own == everything):
                everything = min(wanted, everything)
            needed[name] += everything
    return needed


def _elements(instruction: Instruction) -> int:
    return sum(array.elements for array in instruction.results)


def _bytes(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.results)
