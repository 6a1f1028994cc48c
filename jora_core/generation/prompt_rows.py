"""How prompts are read before they are answered: rows of slots, and where in them the tokens of each stand.

Alone, a prompt is a row. Prompts of one context share what they begin with (see
`jora_core.data.shared_context`): it is read once, and the keys and values of each prompt are picked from
along its path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import flax.struct
import jax
import numpy as np

from jora_core.data.row_packing import lay_rows, pack
from jora_core.data.shared_context import Example, Group, share_contexts

# A branch has a slot for each token but its last, so one more stands for the answer.
_ANSWER = np.zeros(1, np.int32)


@flax.struct.dataclass
class Reading:
    """Rows of slots, int32 arrays `tokens`, `positions`, `until` [R, T] as in
    `jora_core.model.blockwise_attention`, and of B prompts the `path` [B, T]: the slots of their tokens
    within this device's rows, then zeros.
    """

    tokens: jax.Array
    positions: jax.Array
    until: jax.Array
    path: jax.Array


def read_prompts(
    prompts: Sequence[np.ndarray], contexts: Sequence[str], length: int, height: int, shards: int
) -> Reading:
    """Rows of `length` slots that hold at most `height` prompts, B = `height` of them with empty ones.

    Args:
        prompts: int32 [T] each, at most `length` tokens.
        contexts: of each prompt, "" for none; where nothing is shared each has a row, as cuDNN wants it.
        shards: of the mesh's data axis; each reads its own `height` / `shards` prompts.
    """
    size = height // shards
    parts = [
        _rows(prompts[low : low + size], contexts[low : low + size], length) for low in range(0, height, size)
    ]
    # Few numbers of rows, each a program: the height, or its half or quarter or eighth.
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
                for number, along in _paths(group, start):
                    path[shard * size + number, : len(along)] = along
                start += group.slots
    return Reading(slots.tokens, slots.positions, slots.until, path)  # type: ignore[arg-type]


def _rows(prompts: Sequence[np.ndarray], contexts: Sequence[str], length: int) -> list[list[Group]]:
    """The groups of each row; a group's ids are the numbers of its prompts."""
    examples = [
        Example(str(number), context, prompt, _ANSWER)
        for number, (context, prompt) in enumerate(zip(contexts, prompts, strict=True))
    ]
    groups = share_contexts(examples, length)
    if len(groups) == len(prompts):
        return [[group] for group in groups]
    slots = np.asarray([group.slots for group in groups], np.int64)
    return [[groups[n] for n in row] for row in pack(np.arange(len(groups)), slots, (length,))[length]]


def _paths(group: Group, slot: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each prompt's number and the slots int32 [T] of its tokens, in a group whose first slot is `slot`."""
    along = np.zeros(0, np.int32)
    for id, (start, piece) in zip(group.ids, group.branches, strict=True):
        own = slot + np.arange(len(piece) - 1, dtype=np.int32)
        along = np.concatenate([along[:start], own])
        yield int(id), along
        slot += len(own)
