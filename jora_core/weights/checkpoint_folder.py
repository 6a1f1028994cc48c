"""Opening and writing of a model folder in Hugging Face layout.

`jora_core.weights.load_params` reads the weights of an opened folder to their devices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors, model_rows
from jora_core.architecture.tensor_names import head_tensor_name
from jora_core.base.atomic_files import write_json
from jora_core.data.tokenizer import load_tokenizer
from jora_core.parameters.freed_memory import release_freed_memory
from jora_core.parameters.trees import Params
from jora_core.weights.tensor_store import TensorStore, write_tensors


def open_checkpoint(folder: Path | str, config: ModelConfig) -> TensorStore:
    """Open a model folder and check names, shapes and the tokenizer's size, without reading weights.

    Raises:
        InputError: a check fails. The message names tensor and file.
    """
    store = open_weights(folder, config)
    # A folder without a tokenizer is accepted here: the commands that need a tokenizer report the error.
    if any((Path(folder) / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        load_tokenizer(Path(folder), config.vocab_size, encodes=False)
        release_freed_memory()
    return store


def open_weights(folder: Path | str, config: ModelConfig) -> TensorStore:
    """Open the weights of a model folder alone, and check their names and shapes; see `open_checkpoint`."""
    store = TensorStore.of_model(folder)
    # Tied checkpoints may carry the head a second time; transformers ignores it as well.
    ignore = frozenset({head_tensor_name()}) if config.tie_embeddings else frozenset()
    store.check(expected_tensors(config), ignore)
    return store


def save_params(params: Params, config: ModelConfig, folder: Path | str, dtype: Any = jnp.float32) -> None:
    """Write ``model.safetensors`` and ``config.json``, each atomically. A tied head is left out.

    Args:
        params: the weights, on any mesh.
        config: the model's.
        folder: folder to write, made if missing.
        dtype: type of the weights in the file.
    """
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", hf_tensors(params, config, dtype))
    # `torch_dtype` is read by transformers 4 and 5; the first ones do not know the newer `dtype`.
    write_json(folder / "config.json", config.to_hf() | {"torch_dtype": jnp.dtype(dtype).name})


def hf_tensors(params: Params, config: ModelConfig, dtype: Any) -> dict[str, np.ndarray]:
    """Copy all weights to the host, as separate tensors for each layer, by Hugging Face name.

    Args:
        params: the weights, none of them quantized.
        config: the model's.
        dtype: type of the result.
    """
    tensors = {}
    for row in model_rows(config):
        value = getattr(params.layers if row.per_layer else params, row.field)
        # Cast on the host: on the device a second copy of the field may not fit beside the model.
        host = np.asarray(jax.device_get(value)).astype(jnp.dtype(dtype))
        if row.per_layer:
            tensors |= {row.name(layer): host[layer] for layer in range(config.num_layers)}
        else:
            tensors[row.name()] = host
    return tensors
