"""Random packed rows of prefix trees, with the attention mask as the trees themselves tell it."""

from __future__ import annotations

import numpy as np

from jora_core.model.attention_slots import Slots

_PADDING = -2  # in place of a slot's parent


def random_rows(rng: np.random.Generator, rows: int, length: int) -> tuple[Slots, np.ndarray]:
    """Draw rows of trees and padding.

    Args:
        rng: source of the draws.
        rows: number of rows.
        length: slots of a row.

    Returns:
        The slots, and which slot may attend to which by the trees' paths: bool [rows, length, length].
    """
    until, positions = np.zeros((2, rows, length), np.int32)
    sees = np.zeros((rows, length, length), bool)
    for row in range(rows):
        parents = _row(rng, length)
        for slot, parent in enumerate(parents):
            if parent == _PADDING:
                continue
            path = [slot]
            while parent >= 0:
                path.append(parent)
                parent = parents[parent]
            sees[row, slot, path] = True
            positions[row, slot] = len(path) - 1
            until[row, path] = slot + 1
    return Slots(until, positions), sees


def _row(rng: np.random.Generator, length: int) -> list[int]:
    """Draw each slot's parent, -1 for a root. Trees are laid out depth first."""
    parents: list[int] = []
    end = length - int(rng.integers(0, length // 3)) if rng.random() < 0.7 else length
    branching, ending = rng.choice([0.0, 0.02, 0.2]), rng.choice([0.01, 0.05])
    path: list[int] = []
    for slot in range(end):
        if path and rng.random() < ending:
            path = []
        elif path and rng.random() < branching:
            path = path[: int(rng.integers(1, len(path) + 1))]
        parents.append(path[-1] if path else -1)
        path.append(slot)
    return parents + [_PADDING] * (length - end)
