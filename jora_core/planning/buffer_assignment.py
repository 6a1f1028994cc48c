"""Which arrays fill the temporary heap of a compiled program, from XLA's own buffer assignment.

`compiled.memory_analysis()` gives one number for all temporaries. What they are stands in the text that XLA
writes of its buffer assignment: every value with the place and size it has in the heap. Values share places
over time, so the heap is divided by address: a byte counts for the first kind that ever lies on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_VALUE = re.compile(r"value: <\d+ (\S+) @\S*> \(size=(\d+),offset=(\d+)\): (\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Buffer:
    """One temporary: the instruction that makes it, element type and shape, bytes, place in the heap."""

    instruction: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    offset: int

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset + self.bytes


@dataclass(frozen=True)
class Heap:
    """The temporaries of one program and the bytes of the heap that holds them."""

    bytes: int
    buffers: tuple[Buffer, ...]

    def divided(self, kind_of: Callable[[Buffer], str], kinds: Sequence[str]) -> dict[str, int]:
        """Bytes of each kind, in all `bytes`; where kinds share an address the earlier in `kinds` counts,
        and what no value lies on counts for the last.
        """
        edges = sorted({0, self.bytes, *(b.offset for b in self.buffers), *(b.end for b in self.buffers)})
        place = {edge: i for i, edge in enumerate(edges)}
        owner = [len(kinds) - 1] * (len(edges) - 1)
        for buffer in self.buffers:
            rank = kinds.index(kind_of(buffer))
            for i in range(place[buffer.offset], place[buffer.end]):
                owner[i] = min(owner[i], rank)
        found = dict.fromkeys(kinds, 0)
        for i, rank in enumerate(owner):
            found[kinds[rank]] += edges[i + 1] - edges[i]
        return found

    def largest(self, count: int) -> list[Buffer]:
        """The largest values of which no two share an address: what the heap's size is made of."""
        chosen: list[Buffer] = []
        for buffer in sorted(self.buffers, key=lambda b: -b.bytes):
            if len(chosen) == count:
                break
            if all(buffer.end <= other.offset or other.end <= buffer.offset for other in chosen):
                chosen.append(buffer)
        return chosen


def read_heap(folder: Path) -> Heap:
    """The heap of the one program that was compiled with ``xla_dump_to`` = folder.

    Raises:
        RuntimeError: the compiler wrote no buffer assignment there, or more than one.
    """
    files = sorted(folder.glob("*buffer-assignment.txt"))
    if len(files) != 1:
        raise RuntimeError(f"expected one buffer assignment of XLA in {folder}, found {len(files)}")
    return parse_heap(files[0].read_text(encoding="utf-8"))


def parse_heap(text: str) -> Heap:
    """The temporaries in the text of a buffer assignment; several heaps are laid one after another."""
    start = 0
    buffers = []
    for part in re.split(r"(?m)^allocation ", text.split("\nTotal bytes used")[0]):
        head, _, values = part.partition("\n")
        size = re.search(r"size (\d+)", head)
        if size is None or "preallocated-temp" not in head:
            continue
        for name, width, offset, dtype, dims in _VALUE.findall(values):
            shape = tuple(int(n) for n in dims.split(",") if n)
            buffers.append(Buffer(name, dtype, shape, int(width), start + int(offset)))
        start += int(size[1])
    return Heap(start, tuple(buffers))
