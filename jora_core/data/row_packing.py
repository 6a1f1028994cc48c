"""Packing of groups into rows of token slots: the choice of row lengths and of the groups of each row."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from jora_core.data.shared_context import Group, Layout, layout

# cuDNN's attention takes multiples of 64 on all devices. A coarse step also keeps the programs few.
ROW_STEP = 64
MAX_ROW_LENGTHS = 3
# Row lengths that pad at most this much more than the best ones are as good.
_NEARLY_LEAST = 1.02
# Row length at which the scores of attention cost as much as all other products: they do for a small model,
# where it is about 8 times the width.
_ATTENTION_SLOTS = 1024
# Groups that are packed together at least; also the sample from which row lengths are judged.
WINDOW_GROUPS = 1024


def lay_rows(rows: Sequence[Sequence[Group]], height: int, length: int) -> Layout:
    """Lay the groups of each row out one after another, with zeros after the last group.

    Args:
        rows: the groups of each row, at most `height` rows of at most `length` slots.
        height: number of rows of the result.
        length: slots of a row.

    Returns:
        Arrays [height, length]. `until` counts slots from the beginning of the row.
    """
    laid = Layout(
        *(
            np.zeros((height, length), np.float32 if name == "weights" else np.int32)
            for name in Layout._fields
        )
    )
    for row, groups in enumerate(rows):
        start = 0
        for group in groups:
            slots = layout(group)
            slots = slots._replace(until=start + slots.until)
            for whole, part in zip(laid, slots, strict=True):
                whole[row, start : start + len(part)] = part
            start += len(slots.tokens)
    return laid


def rows_of(length: int, tokens_per_batch: int) -> int:
    """Return the number of rows of `length` slots in a microbatch, at least one."""
    return max(1, tokens_per_batch // length)


def choose_row_lengths(
    slots: np.ndarray, tokens_per_batch: int, most: int = MAX_ROW_LENGTHS
) -> tuple[int, ...]:
    """Choose row lengths for groups of given sizes, by dynamic programming over candidate lengths.

    A group of n slots in a row of T slots costs its share of the row, 1 / floor(T / n).

    Args:
        slots: int [groups], size of each group.
        tokens_per_batch: token slots of a microbatch, an upper bound unless a group is larger.
        most: largest number of row lengths; each one is a compiled program.

    Returns:
        Row lengths, sorted multiples of 64.
    """
    top = int(slots.max())
    candidates = sorted(
        {min(-(-n // ROW_STEP) * ROW_STEP, max(top, tokens_per_batch)) for n in slots.tolist()}
    )
    sizes, counts = np.unique(slots, return_counts=True)

    def cost(low: int, length: int) -> float:
        inside = (sizes > low) & (sizes <= length)
        share = 1 / (length // np.maximum(sizes[inside], 1))
        return float((counts[inside] * share).sum() * length * (1 + length / _ATTENTION_SLOTS))

    # best[j]: cost and lengths of the best choice that serves all sizes up to candidates[j]. Each round
    # allows one more length.
    best: list[tuple[float, tuple[int, ...]]] = [(cost(0, c), (c,)) for c in candidates]
    for _ in range(most - 1):
        best = [
            min(
                [best[j]]
                + [
                    (best[i][0] + cost(candidates[i], c), (*best[i][1], c))
                    for i in range(j)
                    if len(best[i][1]) < most
                ],
                key=lambda option: option[0],
            )
            for j, c in enumerate(candidates)
        ]
    return best[-1][1]


def packed_row_lengths(groups: Sequence[Group], tokens_per_batch: int, blocks: int) -> tuple[int, ...]:
    """Choose the row lengths of a stream of groups.

    Groups that share contexts are long and few. One long row length may then need less padding than several
    short ones, with a single program. Long rows cost no more time, since attention skips the blocks between
    groups. Of the lengths with nearly the least padding, the shortest is chosen, because more rows of a
    microbatch are then computed in parallel. Plain examples keep short rows, one example each, because
    cuDNN's attention takes no packed rows.

    Args:
        groups: all groups of the stream.
        tokens_per_batch: token slots of a microbatch.
        blocks: size of the mesh's data axis.
    """
    slots = np.asarray([group.slots for group in groups], np.int64)
    best = choose_row_lengths(slots, tokens_per_batch)
    if all(len(group.branches) == 1 for group in groups):
        return best
    # Packing all groups of a large file for each candidate would take longer than a sample is worth.
    few = slots[:: -(-len(slots) // WINDOW_GROUPS)]

    def padded(lengths: tuple[int, ...]) -> float:
        """Return the slots of the batches that hold the sample. A partly filled batch is a fraction."""
        packed = pack(np.arange(len(few)), few, lengths)
        return sum(
            len(rows)
            / rows_of(length, tokens_per_batch)
            * length
            * batch_rows(length, tokens_per_batch, blocks)
            for length, rows in packed.items()
        )

    long = [tokens_per_batch // (blocks * rows) // ROW_STEP * ROW_STEP for rows in (4, 3, 2, 1)]
    sizes = {lengths: padded(lengths) for lengths in [*((n,) for n in long if n >= slots.max()), best]}
    return next(lengths for lengths, size in sizes.items() if size <= _NEARLY_LEAST * min(sizes.values()))


def batch_rows(length: int, tokens_per_batch: int, blocks: int) -> int:
    """Return the number of rows of a microbatch, rounded up to a multiple of the mesh's data axis.

    Args:
        length: slots of a row.
        tokens_per_batch: token slots of a microbatch.
        blocks: size of the data axis.
    """
    return -(-rows_of(length, tokens_per_batch) // blocks) * blocks


def pack(
    numbers: np.ndarray, slots: np.ndarray, lengths: tuple[int, ...]
) -> dict[int, list[tuple[int, ...]]]:
    """Pack groups by best-fit decreasing.

    Groups are packed from the largest to the smallest. Each group is put into the row where the fewest free
    slots remain. A group that fits into no row opens a new row of the shortest sufficient length.

    Args:
        numbers: int [n], the groups to pack.
        slots: int [groups], size of every group, by number.
        lengths: row lengths, sorted.

    Returns:
        The rows of each length; a row is a list of group numbers.
    """
    rows: list[tuple[int, list[int]]] = []
    open_rows: list[tuple[int, int]] = []  # (free slots, row), sorted
    for number in numbers[np.argsort(-slots[numbers], kind="stable")].tolist():
        need = int(slots[number])
        # -1 sorts before every row number, so this finds the least sufficient number of free slots.
        at = bisect.bisect_left(open_rows, (need, -1))
        if at < len(open_rows):
            free, row = open_rows.pop(at)
        else:
            free = lengths[bisect.bisect_left(lengths, need)]
            row = len(rows)
            rows.append((free, []))
        rows[row][1].append(number)
        if free > need:
            bisect.insort(open_rows, (free - need, row))
    packed: dict[int, list[tuple[int, ...]]] = {length: [] for length in lengths}
    for length, row_numbers in rows:
        packed[length].append(tuple(row_numbers))
    return packed
