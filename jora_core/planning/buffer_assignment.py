"""The arrays in the temporary heap of a compiled program, read from XLA's buffer assignment.

`compiled.memory_analysis()` gives one number for all temporaries. XLA's dump of its buffer assignment lists
every value with its offset and size in the heap. Values share addresses over time, so the heap is divided by
address: a byte counts for the first of the given kinds that uses this byte at any time.

The dump is text for people, and its format may change. So `read_heap` fails where there is no heap, or a heap
without values, instead of reporting zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Example: value: <12 fusion.3{1} @0> (size=4096,offset=128): f32[8,128]{1,0}
_VALUE = re.compile(r"value: <\d+ (\S+) @\S*> \(size=(\d+),offset=(\d+)\): (\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Buffer:
    """One temporary array: its instruction, element type, shape, bytes, and offset in the heap."""

    instruction: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    offset: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the buffer."""
        return self.offset + self.bytes


@dataclass(frozen=True)
class Heap:
    """The temporary arrays of one program, and the size of their heap in bytes."""

    bytes: int
    buffers: tuple[Buffer, ...]

    def divided(self, kind_of: Callable[[Buffer], str], kinds: Sequence[str]) -> dict[str, int]:
        """Divide the bytes of the heap among kinds of values.

        Args:
            kind_of: returns the kind of a buffer.
            kinds: all kinds. An address that several kinds share counts for the earliest of them. Unused
                addresses count for the last kind.

        Returns:
            Bytes of each kind, which add up to the size of the heap.
        """
        # Between two neighbouring edges all addresses hold the same values: no array over all bytes of a
        # heap of gigabytes is needed.
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
        """Return the largest buffers of which no two share an address. These determine the heap's size."""
        chosen: list[Buffer] = []
        # Greedy from the largest on: the set may not be the largest possible, but has the largest arrays.
        for buffer in sorted(self.buffers, key=lambda b: -b.bytes):
            if len(chosen) == count:
                break
            if all(buffer.end <= other.offset or other.end <= buffer.offset for other in chosen):
                chosen.append(buffer)
        return chosen


def read_heap(folder: Path, *, main_memory_only: bool = False) -> Heap:
    """Read the heap of the one program that was compiled with ``xla_dump_to`` = `folder`.

    Args:
        folder: the dump.
        main_memory_only: leave out what lies in other memories, such as the vector memory of a TPU.

    Raises:
        RuntimeError: the folder has no buffer assignment, several, or one in another format.
    """
    files = sorted(folder.glob("*buffer-assignment.txt"))
    if len(files) != 1:
        raise RuntimeError(f"expected one buffer assignment of XLA in {folder}, found {len(files)}")
    heap = parse_heap(files[0].read_text(encoding="utf-8"), main_memory_only=main_memory_only)
    if heap.bytes and not heap.buffers:
        raise RuntimeError(f"{files[0]}: a heap of {heap.bytes} bytes without values; XLA's text has changed")
    return heap


def parse_heap(text: str, *, main_memory_only: bool = False) -> Heap:
    """Read the temporaries from the text of a buffer assignment. Several heaps are joined end to end.

    Args:
        text: the buffer assignment.
        main_memory_only: leave out allocations of another memory, which have a number ("color").
    """
    start = 0
    buffers = []
    # Behind "Total bytes used" XLA lists all values once more, by name.
    for part in re.split(r"(?m)^allocation ", text.split("\nTotal bytes used")[0]):
        head, _, values = part.partition("\n")
        size = re.search(r"size (\d+)", head)
        # Other allocations hold arguments, results and constants, which `memory_analysis` counts.
        if size is None or "preallocated-temp" not in head:
            continue
        if main_memory_only and ", color " in head:
            continue
        for name, width, offset, dtype, dims in _VALUE.findall(values):
            shape = tuple(int(n) for n in dims.split(",") if n)
            buffers.append(Buffer(name, dtype, shape, int(width), start + int(offset)))
        start += int(size[1])
    return Heap(start, tuple(buffers))
