"""Packing of groups of any length into microbatches of fixed shapes, in an order given by (seed, epoch).

A row of T slots holds several groups, which do not attend to one another. A microbatch holds as many rows as
fit into its token budget. Each row length is a compiled program, so only a few lengths are used, chosen from
the lengths of the groups. The plan of an epoch needs the lengths of the groups alone. So a run that resumes
at (epoch, index) builds the same batches as an uninterrupted run, without building the earlier ones.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jora_core.data.row_packing import WINDOW_GROUPS, batch_rows, lay_rows, pack, packed_row_lengths, rows_of
from jora_core.data.shared_context import Group

# The gathered supervised positions are padded to one of these shares of a batch's slots: each size is a
# compiled program.
_SUPERVISED_SHARES = (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
# Groups are packed window by window, in windows of about this many batches. A wider window fills rows better;
# a narrower one follows a curriculum more closely.
_WINDOW_BATCHES = 32
# Enough to tell long rows of one example from many short branches.
_SAMPLED_BATCHES = 16
# Plans of epochs that a stream keeps: training walks through one while `count` may ask for another.
_PLANS_KEPT = 2
Curriculum = Literal["none", "length", "file"]


@dataclass(frozen=True)
class Batch:
    """One microbatch, ready for the device.

    Attributes:
        tokens, positions, until: int32 [B, T]; see `jora_core.model.attention_slots.Slots`. `until` is 0 in
            padding.
        index: int32 [G, M], slot of each supervised position within its block of B/G rows; 0 in padding. G
            is the size of the mesh's data axis.
        targets: int32 [G, M], the token to predict at each supervised position.
        weights: float32 [G, M], the loss weight of each target, 0 in padding.
        ids: ids of the batch's records.
        groups: number of groups, each of examples that share a prefix, or of one example.
        slots: number of slots in use, without padding.
        slots_apart: number of slots in use if each example had its own copy of the prefix.
        supervised: number of positions with a loss weight.
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
    """Plan of one microbatch: the row length T, and for each row the numbers of its groups."""

    length: int
    rows: tuple[tuple[int, ...], ...]


class BatchStream:
    """The microbatches of a run, each identified by (epoch, index)."""

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
        """Choose the row lengths from the groups.

        Args:
            groups: all groups, numbered from 0.
            tokens_per_batch: token slots of a microbatch.
            seed: seed of the shuffling.
            blocks: size of the mesh's data axis. The number of rows is padded to a multiple of this size.
                Supervised positions are gathered within each block, so that no hidden state crosses devices.
            curriculum: order of the first epoch: by length, as in the file, or shuffled.
            shuffle: False keeps the order of the groups, for evaluation.
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
        self._plans: dict[int, tuple[RowPlan, ...]] = {}
        self._least_supervised = self._most_supervised_by_length()

    def plan(self, epoch: int) -> tuple[RowPlan, ...]:
        """Return the plans of all microbatches of an epoch."""
        if epoch not in self._plans:
            # A dict keeps the order of insertion, so the oldest plans are left out.
            recent = list(self._plans.items())[1 - _PLANS_KEPT :]
            self._plans = dict([*recent, (epoch, self._plan_epoch(epoch))])
        return self._plans[epoch]

    def batch(self, epoch: int, index: int) -> Batch:
        """Build the microbatch at (epoch, index)."""
        return self.build(self.plan(epoch)[index])

    def walk(self, epoch: int = 0, index: int = 0) -> Iterator[tuple[tuple[int, int], Batch]]:
        """Yield microbatches without end from (epoch, index) on, each with the position of the next."""
        while True:
            plans = self.plan(epoch)
            while index < len(plans):
                # Each batch has the position of the next one, because a checkpoint stores that position.
                follows = (epoch, index + 1) if index + 1 < len(plans) else (epoch + 1, 0)
                yield follows, self.build(plans[index])
                index += 1
            epoch, index = epoch + 1, 0

    def sample_of_until(self) -> list[np.ndarray]:
        """Return `until` of the first microbatches, for which the block size of attention is chosen."""
        return [self.build(plan).until for plan in self.plan(0)[:_SAMPLED_BATCHES]]

    def count(self, epochs: float) -> int:
        """Return the number of microbatches in a number of epochs, which may be fractional."""
        whole = int(epochs)
        total = sum(len(self.plan(epoch)) for epoch in range(whole))
        part = epochs - whole
        return total + (math.ceil(part * len(self.plan(whole))) if part > 0 else 0)

    def record_counts(self, microbatches: int) -> Counter[str]:
        """Return how often each record is in the first microbatches of the run, by the record's id."""
        counts: Counter[str] = Counter()
        epoch = 0
        while microbatches > 0:
            plans = self.plan(epoch)[:microbatches]
            for plan in plans:
                for number in itertools.chain.from_iterable(plan.rows):
                    counts.update(self._groups[number].ids)
            microbatches -= len(plans)
            epoch += 1
        return counts

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
        """Return `index`, `targets` and `weights` [G, M] of the supervised positions in arrays [B, T]."""
        blocks = self._blocks
        flat_targets = targets.reshape(blocks, -1)
        flat_weights = weights.reshape(blocks, -1)
        # All blocks are padded to the count of the fullest, since the data axis splits one array [G, M].
        counts = np.count_nonzero(flat_weights, axis=1)
        slots = flat_weights.shape[1]
        size = _supervised_size(
            max(int(counts.max()), self._least_supervised.get(targets.shape[1], 0) // blocks), slots
        )
        # Padding points at slot 0 with weight 0: it is computed and adds nothing to the loss.
        index = np.zeros((blocks, size), np.int32)
        picked_targets = np.zeros((blocks, size), np.int32)
        picked_weights = np.zeros((blocks, size), np.float32)
        for block, count in enumerate(counts):
            where = np.flatnonzero(flat_weights[block])
            index[block, :count] = where
            picked_targets[block, :count] = flat_targets[block, where]
            picked_weights[block, :count] = flat_weights[block, where]
        return index, picked_targets, picked_weights

    def _most_supervised_by_length(self) -> dict[int, int]:
        """Return, by row length, the most supervised positions of a microbatch in the first epoch.

        All batches of a row length are padded at least to this number, so that one program serves them.
        """
        most = dict.fromkeys(self.row_lengths, 0)
        for plan in self.plan(0):
            count = int(sum(self._supervised[list(row)].sum() for row in plan.rows))
            most[plan.length] = max(most[plan.length], count)
        return most

    def _plan_epoch(self, epoch: int) -> tuple[RowPlan, ...]:
        """Shuffle the groups, pack some at a time into rows, and fill microbatches with rows."""
        # Seeded by (seed, epoch): the plan of an epoch does not depend on the epochs before it.
        rng = np.random.default_rng([self._seed, epoch])
        slots, budget, shuffle = self._slots, self._budget, self._shuffle
        order = self._group_order(rng, epoch)
        window = max(WINDOW_GROUPS, int(_WINDOW_BATCHES * budget / max(slots.mean(), 1)))
        # Rows that fill no microbatch yet wait for the next window, so only the end of an epoch has partly
        # filled microbatches.
        waiting: dict[int, list[tuple[int, ...]]] = {length: [] for length in self.row_lengths}
        plans: list[RowPlan] = []
        for start in range(0, len(order), window):
            made: list[RowPlan] = []
            for length, rows in pack(order[start : start + window], slots, self.row_lengths).items():
                # Packing sorts groups by length; both shuffles undo that.
                waiting[length] += [rows[i] for i in rng.permutation(len(rows))] if shuffle else rows
                height = rows_of(length, budget)
                while len(waiting[length]) >= height:
                    made.append(RowPlan(length, tuple(waiting[length][:height])))
                    del waiting[length][:height]
            plans += [made[i] for i in rng.permutation(len(made))] if shuffle else made
        return (*plans, *_last_batches(waiting, slots, budget))

    def _group_order(self, rng: np.random.Generator, epoch: int) -> np.ndarray:
        """Return the numbers of all groups in the order in which they are packed."""
        slots = self._slots
        order = rng.permutation(len(slots)) if self._shuffle else np.arange(len(slots))
        if epoch > 0 or self._curriculum == "none":
            return order
        if self._curriculum == "file":
            return np.arange(len(slots))
        # Noise on the lengths, so that groups of nearly equal length are still mixed.
        return order[np.argsort(slots[order] * rng.uniform(0.8, 1.25, len(slots)), kind="stable")]


def _last_batches(
    waiting: dict[int, list[tuple[int, ...]]], slots: np.ndarray, budget: int
) -> Iterator[RowPlan]:
    """Pack the remaining groups of an epoch again, into rows of the shortest length that fits all of them."""
    left = np.asarray([number for rows in waiting.values() for row in rows for number in row], np.int64)
    if not len(left):
        return
    needed = int(slots[left].max())
    # One length for all that is left: with several, each could end in a nearly empty microbatch.
    length = min(length for length in waiting if length >= needed)
    rows = pack(left, slots, (length,))[length]
    height = rows_of(length, budget)
    for start in range(0, len(rows), height):
        yield RowPlan(length, tuple(rows[start : start + height]))


def _supervised_size(count: int, slots: int) -> int:
    """Return the smallest padded size that holds `count` positions."""
    return next(size for share in _SUPERVISED_SHARES if (size := math.ceil(share * slots)) >= count)
