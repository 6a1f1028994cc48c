"""A model folder as it is: its config, corrected by what the weights say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.tensor_names import TENSORS, head_tensor_name
from jora_core.base.notices import notice
from jora_core.weights.tensor_store import TensorStore

# Rows of embedding and head that are compared at once.
_ROWS = 4096


def read_model(folder: Path | str) -> ModelConfig:
    """Read the config of a model folder.

    A head that is stored beside the embedding and differs from it is used, whatever tie_word_embeddings
    says: transformers 5 computes such a model with its own head too.

    Raises:
        InputError: config or weights cannot be read.
    """
    config = ModelConfig.from_hf(folder)
    if not config.tie_embeddings:
        return config
    store, head = TensorStore.of_model(folder), head_tensor_name()
    embedding = next(row for row in TENSORS if row.field == "embedding").name()
    if not {head, embedding} <= set(store.names()) or _equal(store, head, embedding):
        return config
    notice(
        f"{folder}: tie_word_embeddings is true, but {head} is stored and differs from the embedding; "
        f"{head} is used"
    )
    return dataclasses.replace(config, tie_embeddings=False)


def _equal(store: TensorStore, one: str, other: str) -> bool:
    shape = store.shape(one)
    if shape != store.shape(other) or len(shape) != 2:
        return False
    for first in range(0, shape[0], _ROWS):
        part = (slice(first, first + _ROWS), slice(None))
        if not np.array_equal(
            store.read(one, part).astype(np.float32), store.read(other, part).astype(np.float32)
        ):
            return False
    return True
