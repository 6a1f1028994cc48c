"""Microbatches of fixed shapes from groups of any length, in an order that (seed, epoch) decides.

A row of T slots holds several groups, which do not see one another; a microbatch holds as many rows as fit
into its token budget. Few row lengths are used (each is one compiled program), chosen for the data at hand.
The plan of an epoch is made from lengths alone, so a run that goes on at (epoch, index) builds exactly the
batches it would have built, without reading those before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from jora_core.data.row_packing import _WINDOW_GROUPS, batch_rows, lay_rows, pack, packed_row_lengths, rows_of
from jora_core.data.shared_context import Group

# Shares of a batch's slots that the gathered supervised positions are padded to.
_SUPERVISED_SHARES = (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
# Groups planned together: the wider the window, the fuller the rows and the less local the order.
_WINDOW_BATCHES = 32
Curriculum = Literal["none", "length", "file"]


@dataclass(frozen=True)
class Batch:
    """One microbatch, ready for the device.

    Attributes:
        tokens, positions, until: int32 [B, T]; see `jora_core.model.attention_slots.Slots`; `until` is 0 in
            padding.
        index: int32 [G, M], slot of each supervised position within its block of B/G rows; 0 in padding.
        targets: int32 [G, M]; weights: float32 [G, M], 0 in padding.
        ids: records in the batch; groups: how many of examples that share a prefix, or are alone.
        slots: slots in use; slots_apart: slots that the examples would take, each with its own prefix.
        supervised: positions with a weight.
    """

    tokens: np.ndarray
    positions: np.ndarray
    until: np.ndarray
    index: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    ids: tuple[str, ...]
    groups: int
    slots: int
    slots_apart: int
    supervised: int


@dataclass(frozen=True)
class RowPlan:
    """Rows of one microbatch: row length T and, per row, the numbers of its groups."""

    length: int
    rows: tuple[tuple[int, ...], ...]


class BatchStream:
    """The microbatches of a training run: `epoch` and `index` name each, `position` says which comes next."""

    def __init__(
        self,
        groups: Sequence[Group],
        tokens_per_batch: int,
        *,
        seed: int,
        blocks: int = 1,
        curriculum: Curriculum = "none",
        shuffle: bool = True,
    ) -> None:
        """Args:
        blocks: size of the mesh's data axis; rows are padded to a multiple of it, and supervised positions
            are gathered within each block, so that no hidden state crosses devices.
        """
        self._groups = groups
        self._slots = np.asarray([g.slots for g in groups], np.int64)
        self._supervised = np.asarray([g.supervised for g in groups], np.int64)
        self._budget = tokens_per_batch
        self._seed = seed
        self._blocks = blocks
        self._curriculum: Curriculum = curriculum
        self._shuffle = shuffle
        self.row_lengths = packed_row_lengths(groups, tokens_per_batch, blocks)
        self._floors = self._supervised_floors()

    def plan(self, epoch: int) -> tuple[RowPlan, ...]:
        """All microbatches of an epoch, as group numbers."""
        return _plan_epoch(self, epoch)

    def batch(self, epoch: int, index: int) -> Batch:
        """Build one microbatch."""
        return self.build(self.plan(epoch)[index])

    def walk(self, epoch: int = 0, index: int = 0) -> Iterator[tuple[tuple[int, int], Batch]]:
        """Microbatches from a position on, without end, each with the position that follows it."""
        while True:
            plans = self.plan(epoch)
            while index < len(plans):
                follows = (epoch, index + 1) if index + 1 < len(plans) else (epoch + 1, 0)
                yield follows, self.build(plans[index])
                index += 1
            epoch, index = epoch + 1, 0

    def count(self, epochs: float) -> int:
        """Microbatches in a number of epochs, the last of which may be a part."""
        whole = int(epochs)
        total = sum(len(self.plan(epoch)) for epoch in range(whole))
        part = epochs - whole
        return total + (math.ceil(part * len(self.plan(whole))) if part > 0 else 0)

    def build(self, plan: RowPlan) -> Batch:
        """Lay out the rows of a plan, padded to the batch's fixed shape."""
        length, blocks = plan.length, self._blocks
        height = batch_rows(length, self._budget, blocks)
        rows = [[self._groups[number] for number in row] for row in plan.rows]
        groups = [group for row in rows for group in row]
        slots = lay_rows(rows, height, length)
        index, targets, weights = self._gather(slots.targets, slots.weights)
        return Batch(
            slots.tokens,
            slots.positions,
            slots.until,
            index=index,
            targets=targets,
            weights=weights,
            ids=tuple(id for group in groups for id in group.ids),
            groups=len(groups),
            slots_apart=sum(group.slots_apart for group in groups),
            slots=sum(group.slots for group in groups),
            supervised=int(np.count_nonzero(slots.weights)),
        )

    def _gather(self, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        blocks = self._blocks
        flat_targets = targets.reshape(blocks, -1)
        flat_weights = weights.reshape(blocks, -1)
        counts = np.count_nonzero(flat_weights, axis=1)
        slots = flat_weights.shape[1]
        size = _supervised_size(
            max(int(counts.max()), self._floors.get(targets.shape[1], 0) // blocks), slots
        )
        index = np.zeros((blocks, size), np.int32)
        picked_targets = np.zeros((blocks, size), np.int32)
        picked_weights = np.zeros((blocks, size), np.float32)
        for block, count in enumerate(counts):
            where = np.flatnonzero(flat_weights[block])
            index[block, :count] = where
            picked_targets[block, :count] = flat_targets[block, where]
            picked_weights[block, :count] = flat_weights[block, where]
        return index, picked_targets, picked_weights

    def _supervised_floors(self) -> dict[int, int]:
        """Most supervised positions of a microbatch in the first epoch, per row length: one program each."""
        floors = dict.fromkeys(self.row_lengths, 0)
        for plan in self.plan(0):
            count = int(sum(self._supervised[list(row)].sum() for row in plan.rows))
            floors[plan.length] = max(floors[plan.length], count)
        return floors


@lru_cache(maxsize=2)
def _plan_epoch(stream: BatchStream, epoch: int) -> tuple[RowPlan, ...]:
    rng = np.random.default_rng([stream._seed, epoch])
    slots = stream._slots
    order = rng.permutation(len(slots)) if stream._shuffle else np.arange(len(slots))
    if stream._curriculum == "file" and epoch == 0:
        order = np.arange(len(slots))  # the file is the lesson plan; what is packed together still mixes
    elif stream._curriculum == "length" and epoch == 0:
        # A little noise, so that neighbours in length are still mixed.
        order = order[np.argsort(slots[order] * rng.uniform(0.8, 1.25, len(slots)), kind="stable")]
    window = max(_WINDOW_GROUPS, int(_WINDOW_BATCHES * stream._budget / max(slots.mean(), 1)))
    waiting: dict[int, list[tuple[int, ...]]] = {length: [] for length in stream.row_lengths}
    plans: list[RowPlan] = []
    for start in range(0, len(order), window):
        made: list[RowPlan] = []
        for length, rows in pack(order[start : start + window], slots, stream.row_lengths).items():
            waiting[length] += [rows[i] for i in rng.permutation(len(rows))] if stream._shuffle else rows
            height = rows_of(length, stream._budget)
            while len(waiting[length]) >= height:
                made.append(RowPlan(length, tuple(waiting[length][:height])))
                del waiting[length][:height]
        plans += [made[i] for i in rng.permutation(len(made))] if stream._shuffle else made
    return (*plans, *_last_batches(waiting, slots, stream._budget))


def _last_batches(
    waiting: dict[int, list[tuple[int, ...]]], slots: np.ndarray, budget: int
) -> Iterator[RowPlan]:
    """What is left of an epoch, packed anew into rows of the longest kind that any of it needs."""
    left = np.asarray([number for rows in waiting.values() for row in rows for number in row], np.int64)
    if not len(left):
        return
    needed = int(slots[left].max())
    length = min(length for length in waiting if length >= needed)
    rows = pack(left, slots, (length,))[length]
    height = rows_of(length, budget)
    for start in range(0, len(rows), height):
        yield RowPlan(length, tuple(rows[start : start + height]))


def _supervised_size(count: int, slots: int) -> int:
    """The smallest padded size, a fixed share of the slots, that holds `count` positions."""
    return next(size for share in _SUPERVISED_SHARES if (size := math.ceil(share * slots)) >= count)
