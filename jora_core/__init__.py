"""The training core on JAX: model, LoRA, sharding, weights, data, training, prediction, export.

Importing this package loads nothing heavy: its public names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jora_core.base.errors import InputError

if TYPE_CHECKING:
    from jora_core.paper import (
        AlpacaDataset,
        ParagemmaConfig,
        ParallamaConfig,
        generate_alpaca_dataset,
        generate_alpaca_dataset_gemma,
        train_lora,
        train_lora_gemma,
    )

# The interface of the JORA paper (its listing 1). Importing `paper` loads JAX, so it is done on first use.
_LAZY = {
    "AlpacaDataset": "jora_core.paper",
    "ParagemmaConfig": "jora_core.paper",
    "ParallamaConfig": "jora_core.paper",
    "generate_alpaca_dataset": "jora_core.paper",
    "generate_alpaca_dataset_gemma": "jora_core.paper",
    "train_lora": "jora_core.paper",
    "train_lora_gemma": "jora_core.paper",
}

__all__ = [
    "AlpacaDataset",
    "InputError",
    "ParagemmaConfig",
    "ParallamaConfig",
    "generate_alpaca_dataset",
    "generate_alpaca_dataset_gemma",
    "train_lora",
    "train_lora_gemma",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
