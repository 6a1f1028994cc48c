"""The tensors of one model: its rows of the table `TENSORS`, and their shapes."""

from __future__ import annotations

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.tensor_names import TENSORS, TensorRow, projection_row


def model_rows(config: ModelConfig) -> list[TensorRow]:
    """Return the rows of `TENSORS` that a model of this config has."""
    return [row for row in TENSORS if _belongs(row, config)]


def tensor_shape(row: TensorRow, config: ModelConfig) -> tuple[int, ...]:
    """Return the shape of one tensor of the table, without a layer axis."""
    widths = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        # Not always hidden_size: Gemma and Qwen3 set head_dim apart from the width.
        "NH": config.num_heads * config.head_dim,
        "KH": config.num_kv_heads * config.head_dim,
        "H": config.head_dim,
    }
    return tuple(sum(widths[letters] for letters in axis.split("+")) for axis in row.shape)


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each field of `LayerParams` that the model has, without the layer axis."""
    return {row.field: tensor_shape(row, config) for row in model_rows(config) if row.per_layer}


def model_projections(config: ModelConfig) -> dict[str, str]:
    """Return the projections of a model: field of `LayerParams` to module name in a Hugging Face layer."""
    return {row.field: row.module for row in model_rows(config) if row.is_projection}


def projection_shape(config: ModelConfig, target: str) -> tuple[int, int]:
    """Return (out, in) of one projection."""
    out_width, in_width = tensor_shape(projection_row(target), config)
    return out_width, in_width


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a checkpoint of this config must hold."""
    expected = {}
    # A tensor outside of the layers has one name, whatever the number.
    for row in model_rows(config):
        for layer in range(config.num_layers if row.per_layer else 1):
            expected[row.name(layer)] = tensor_shape(row, config)
    return expected


def _belongs(row: TensorRow, config: ModelConfig) -> bool:
    """Say whether a model of this config has the tensor."""
    wanted = row.when is None or bool(getattr(config, row.when))
    return wanted and (row.unless is None or not getattr(config, row.unless))
