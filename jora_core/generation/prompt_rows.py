"""Layout of prompts in rows of slots for the prefill.

A prompt without a context takes a whole row. Prompts of one context share their common prefix (see
`jora_core.data.shared_context`): the prefix is computed once, and each prompt's keys and values are gathered
from the slots along its path through the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import flax.struct
import jax
import numpy as np

from jora_core.data.row_packing import lay_rows, pack
from jora_core.data.shared_context import Example, Group, share_contexts

# A branch has a slot for each of its tokens but the last, so one token stands for the answer to come.
_ANSWER = np.zeros(1, np.int32)


@flax.struct.dataclass
class PromptRows:
    """The rows of a batch of prompts.

    Attributes:
        tokens, positions, until: int32 [R, T]; see `jora_core.model.attention_slots.Slots`. R is at most the
            number of prompts B, and less where prompts share slots.
        path: int32 [B, T], the slot of each token of each prompt, numbered within this device's rows; zeros
            after a prompt's last token.
    """

    tokens: jax.Array
    positions: jax.Array
    until: jax.Array
    path: jax.Array


def lay_out_prompts(
    prompts: Sequence[np.ndarray], contexts: Sequence[str], length: int, height: int, shards: int
) -> PromptRows:
    """Lay prompts out in rows, and add empty prompts until the batch has `height` prompts.

    Args:
        prompts: int32 [T] each, at most `height` prompts of at most `length` tokens.
        contexts: the context of each prompt, "" for none.
        length: slots of a row.
        height: number of prompts in the batch, B, a multiple of `shards`.
        shards: size of the mesh's data axis; each part computes `height` / `shards` prompts.
    """
    size = height // shards
    parts = [
        _rows(prompts[low : low + size], contexts[low : low + size], length) for low in range(0, height, size)
    ]
    # Each number of rows is a compiled program of its own, so only the height, its half, its quarter and so
    # on are used. Without sharing the height stays whole: prompts keep a row each, which cuDNN requires.
    rows = size
    shared = any(len(group.branches) > 1 for part in parts for row in part for group in row)
    while shared and rows % 2 == 0 and rows // 2 >= max(map(len, parts)):
        rows //= 2
    filled = [row for part in parts for row in (*part, *[[]] * (rows - len(part)))]
    slots = lay_rows(filled, shards * rows, length)
    path = np.zeros((height, length), np.int32)
    for shard, part in enumerate(parts):
        for row, groups in enumerate(part):
            start = row * length
            for group in groups:
                for number, slots_of_prompt in _paths(group, start):
                    path[shard * size + number, : len(slots_of_prompt)] = slots_of_prompt
                start += group.slots
    return PromptRows(slots.tokens, slots.positions, slots.until, path)  # type: ignore[arg-type]


def _rows(prompts: Sequence[np.ndarray], contexts: Sequence[str], length: int) -> list[list[Group]]:
    """Return the groups of each row. The ids in a group are prompt numbers."""
    examples = [
        Example(str(number), context, prompt, _ANSWER)
        for number, (context, prompt) in enumerate(zip(contexts, prompts, strict=True))
    ]
    groups = share_contexts(examples, length)
    # Nothing is shared: a row for each prompt, the only form that cuDNN's attention takes.
    if len(groups) == len(prompts):
        return [[group] for group in groups]
    slots = np.asarray([group.slots for group in groups], np.int64)
    return [[groups[n] for n in row] for row in pack(np.arange(len(groups)), slots, (length,))[length]]


def _paths(group: Group, slot: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each prompt's number and the slots int32 [T] of its tokens, in a group that begins at `slot`."""
    path = np.zeros(0, np.int32)
    for id, (start, piece) in zip(group.ids, group.branches, strict=True):
        own = slot + np.arange(len(piece) - 1, dtype=np.int32)
        path = np.concatenate([path[:start], own])
        yield int(id), path
        slot += len(own)
