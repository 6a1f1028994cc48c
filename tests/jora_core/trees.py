"""Slots told by group and suffix, as a reader would tell them, and what the branches of a group spell."""

from __future__ import annotations

import numpy as np

from jora_core.data.shared_context import Group, Piece


def until_of(segments: np.ndarray, suffixes: np.ndarray) -> np.ndarray:
    """The slot from which on each slot is seen no more: int32 like the arguments.

    Args:
        segments: int [..., T], the group that a slot is of; 0 is padding.
        suffixes: int [..., T], 0 for what the suffixes 1, 2, ... of a group share, each of which sees it and
            itself.
    """
    slot = np.arange(segments.shape[-1])
    same = segments[..., :, None] == segments[..., None, :]
    own = (suffixes[..., None, :] == 0) | (suffixes[..., :, None] == suffixes[..., None, :])
    sees = same & own & (segments[..., None, :] > 0) & (slot[:, None] >= slot)
    last = np.where(sees, slot[:, None] + 1, 0).max(axis=-2)
    return last.astype(np.int32)


def chains(group: Group) -> list[Piece]:
    """Every example of a group as the tokens and weights that training it apart would use, in order."""
    found: list[Piece] = []
    for start, piece in group.branches:
        found.append(found[-1][:start] + piece if found else piece)
    return found


def listed(group: Group) -> list[tuple[list[int], list[float]]]:
    """`chains` as lists."""
    return [(chain.tokens.tolist(), chain.weights.tolist()) for chain in chains(group)]
