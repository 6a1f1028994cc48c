"""Examples into rows of token slots: row lengths, packing, and microbatches of rows."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from jora_core.data.shared_context import Group, Layout, layout

ROW_STEP = 64
MAX_ROW_LENGTHS = 3
# Rows that pad at most this much more than the best are as good.
_NEARLY_LEAST = 1.02
# Row length at which attention's scores cost as much as all else: 8 times the width of a small model.
_ATTENTION_SLOTS = 1024
_WINDOW_GROUPS = 1024


def lay_rows(rows: Sequence[Sequence[Group]], height: int, length: int) -> Layout:
    """Groups in their rows, one behind the other, zeros behind them: arrays [height, length], with `until`
    counted in the row.
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
    """Rows of `length` slots in a microbatch."""
    return max(1, tokens_per_batch // length)


def choose_row_lengths(
    slots: np.ndarray, tokens_per_batch: int, most: int = MAX_ROW_LENGTHS
) -> tuple[int, ...]:
    """At most `most` row lengths, multiples of 64 within the budget, for groups of these sizes.

    The cost of a group of n slots in rows of T is its share, 1 / floor(T / n), of the row's. The best set is
    found by dynamic programming over the candidates.
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

    # best[j] = (cost, chosen lengths) of covering all sizes up to candidates[j], per number of lengths used.
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
    """The row lengths that a stream packs these groups into.

    Attention skips blocks of other groups, so a full long row costs no more than short ones: where contexts
    are shared, groups are long and few, and such rows may pad less, with one program; the shortest that
    pad nearly least are taken, since rows are computed side by side. Rows of one plain example each are left
    short, for cuDNN takes them.
    """
    slots = np.asarray([group.slots for group in groups], np.int64)
    best = choose_row_lengths(slots, tokens_per_batch)
    if all(len(group.branches) == 1 for group in groups):
        return best
    few = slots[:: -(-len(slots) // _WINDOW_GROUPS)]

    def padded(lengths: tuple[int, ...]) -> float:
        """Slots of the batches that hold the groups, parts of a batch counted as parts."""
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
    """Rows of a microbatch, filled up to a multiple of the mesh's data axis."""
    return -(-rows_of(length, tokens_per_batch) // blocks) * blocks


def pack(
    numbers: np.ndarray, slots: np.ndarray, lengths: tuple[int, ...]
) -> dict[int, list[tuple[int, ...]]]:
    """Best-fit decreasing: each group goes where it leaves the least room, else opens the shortest row it
    fits.
    """
    rows: list[tuple[int, list[int]]] = []
    room: list[tuple[int, int]] = []  # (free slots, row), sorted
    for number in numbers[np.argsort(-slots[numbers], kind="stable")].tolist():
        need = int(slots[number])
        at = bisect.bisect_left(room, (need, -1))
        if at < len(room):
            free, row = room.pop(at)
        else:
            free = lengths[bisect.bisect_left(lengths, need)]
            row = len(rows)
            rows.append((free, []))
        rows[row][1].append(number)
        if free > need:
            bisect.insort(room, (free - need, row))
    packed: dict[int, list[tuple[int, ...]]] = {length: [] for length in lengths}
    for length, row_numbers in rows:
        packed[length].append(tuple(row_numbers))
    return packed
