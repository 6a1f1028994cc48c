"""The names under which reporters get the values of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a row as ``train/<name>``, and the validation loss as ``validation/loss``."""
    return {
        "validation/loss" if name == "validation_loss" else f"train/{name}": value
        for name, value in row.items()
        if name != "step"
    }
