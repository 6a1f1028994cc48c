"""Weights in and out of Hugging Face folders, from one table of names.

`TENSORS` says for every field of `Params` what Hugging Face calls it and its shape; loading, saving, adapter
names and the checks are all derived from it. Weights are read slice by slice straight into their place on the
mesh, so no host ever holds a whole model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jora_core.config import ModelConfig
from jora_core.model import LayerParams, Params
from jora_core.sharding import make_mesh, param_shardings
from jora_core.storage import TensorStore, write_json, write_tensors
from jora_core.tokenize import load_tokenizer


@dataclass(frozen=True)
class TensorRow:
    """One field of `Params` (or of its layers): Hugging Face module, and shape as names of widths."""

    field: str
    module: str
    shape: tuple[str, ...]
    per_layer: bool = True

    def name(self, layer: int = 0) -> str:
        """The tensor's name in a Hugging Face checkpoint."""
        return f"{self.prefix(layer)}.weight"

    def prefix(self, layer: int = 0) -> str:
        """The module's name in a Hugging Face model."""
        return f"model.layers.{layer}.{self.module}" if self.per_layer else self.module

    def size(self, config: ModelConfig) -> tuple[int, ...]:
        """The shape of one (layer's) tensor."""
        widths = {
            "V": config.vocab_size,
            "D": config.hidden_size,
            "F": config.intermediate_size,
            "NH": config.num_heads * config.head_dim,
            "KH": config.num_kv_heads * config.head_dim,
        }
        return tuple(widths[axis] for axis in self.shape)


TENSORS: tuple[TensorRow, ...] = (
    TensorRow("embedding", "model.embed_tokens", ("V", "D"), per_layer=False),
    TensorRow("attention_norm", "input_layernorm", ("D",)),
    TensorRow("q_proj", "self_attn.q_proj", ("NH", "D")),
    TensorRow("k_proj", "self_attn.k_proj", ("KH", "D")),
    TensorRow("v_proj", "self_attn.v_proj", ("KH", "D")),
    TensorRow("o_proj", "self_attn.o_proj", ("D", "NH")),
    TensorRow("mlp_norm", "post_attention_layernorm", ("D",)),
    TensorRow("gate_proj", "mlp.gate_proj", ("F", "D")),
    TensorRow("up_proj", "mlp.up_proj", ("F", "D")),
    TensorRow("down_proj", "mlp.down_proj", ("D", "F")),
    TensorRow("final_norm", "model.norm", ("D",), per_layer=False),
    TensorRow("head", "lm_head", ("V", "D"), per_layer=False),
)
_ROWS = {row.field: row for row in TENSORS}


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each field of `LayerParams`, without the layer axis."""
    return {row.field: row.size(config) for row in TENSORS if row.per_layer}


def projection_shape(config: ModelConfig, target: str) -> tuple[int, int]:
    """(out, in) of one projection."""
    out_width, in_width = _ROWS[target].size(config)
    return out_width, in_width


def lora_tensor_name(layer: int, target: str, part: str) -> str:
    """PEFT's name of one adapter matrix; `part` is "A" or "B"."""
    return f"base_model.model.{_ROWS[target].prefix(layer)}.lora_{part}.weight"


def model_rows(config: ModelConfig) -> list[TensorRow]:
    """The rows of a model of this shape: a tied model has no head of its own."""
    return [row for row in TENSORS if not (row.field == "head" and config.tie_embeddings)]


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config must hold."""
    expected = {}
    for row in model_rows(config):
        for layer in range(config.num_layers if row.per_layer else 1):
            expected[row.name(layer)] = row.size(config)
    return expected


def open_checkpoint(folder: Path | str, config: ModelConfig) -> TensorStore:
    """Open a model folder and check names, shapes and the tokenizer's size, reading no weights yet.

    Raises:
        InputError: naming the tensor and the file.
    """
    store = TensorStore.of_model(folder)
    # Tied checkpoints may carry the head a second time; transformers ignores it as well.
    ignore = frozenset({_ROWS["head"].name()}) if config.tie_embeddings else frozenset()
    store.check(expected_tensors(config), ignore)
    if any((Path(folder) / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        load_tokenizer(Path(folder), config.vocab_size)
    return store


def load_params(
    folder: Path | str, config: ModelConfig, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> Params:
    """Read a model's weights into their places on the mesh (one device if None).

    Raises:
        InputError: file missing or truncated; tensor missing, unexpected, misshaped or not finite; more
            tokens in the tokenizer than rows in the embedding; a mesh that cannot split this model.
    """
    store = open_checkpoint(folder, config)
    shardings = param_shardings(config, mesh or make_mesh())

    def load(row: TensorRow) -> jax.Array:
        shape = row.size(config)
        if not row.per_layer:
            sharding = getattr(shardings, row.field)
            return _from_slices(shape, sharding, dtype, lambda index: store.read(row.name(), index))
        sharding = getattr(shardings.layers, row.field)
        return _from_slices(
            (config.num_layers, *shape),
            sharding,
            dtype,
            lambda index: _read_layers(store, row, index, config, dtype),
        )

    fields = {row.field: load(row) for row in model_rows(config)}
    layers = LayerParams(**{row.field: fields.pop(row.field) for row in TENSORS if row.per_layer})
    return Params(layers=layers, **fields)


def save_params(params: Params, config: ModelConfig, folder: Path | str, dtype: Any = jnp.float32) -> None:
    """Write ``model.safetensors`` and ``config.json`` (head left out where tied), each atomically."""
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", hf_tensors(params, config, dtype))
    write_json(folder / "config.json", config.to_hf() | {"torch_dtype": jnp.dtype(dtype).name})


def hf_tensors(params: Params, config: ModelConfig, dtype: Any) -> dict[str, np.ndarray]:
    """All weights on the host under their Hugging Face names, one tensor a layer."""
    tensors = {}
    for row in model_rows(config):
        value = getattr(params.layers if row.per_layer else params, row.field)
        host = np.asarray(jax.device_get(value)).astype(jnp.dtype(dtype))
        if row.per_layer:
            tensors |= {row.name(layer): host[layer] for layer in range(config.num_layers)}
        else:
            tensors[row.name()] = host
    return tensors


def _read_layers(
    store: TensorStore, row: TensorRow, index: tuple[slice, ...], config: ModelConfig, dtype: Any
) -> np.ndarray:
    """The slices of all layers that one device holds, stacked."""
    layers = range(*index[0].indices(config.num_layers))
    first = store.read(row.name(layers[0]), index[1:])
    stacked = np.empty((len(layers), *first.shape), jnp.dtype(dtype))
    for i, layer in enumerate(layers):
        stacked[i] = first if i == 0 else store.read(row.name(layer), index[1:])
    return stacked


def _from_slices(
    shape: tuple[int, ...], sharding: Any, dtype: Any, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """Make an array from a reader of slices; replicas of one slice share one read."""
    done: dict[str, np.ndarray] = {}

    def callback(index: tuple[slice, ...] | None) -> np.ndarray:
        whole = index or tuple(slice(None) for _ in shape)
        key = json.dumps([[s.start, s.stop] for s in whole])
        if key not in done:
            done[key] = np.asarray(read(whole)).astype(jnp.dtype(dtype), copy=False)
        return done[key]

    return jax.make_array_from_callback(shape, sharding, callback)
