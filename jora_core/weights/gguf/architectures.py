"""The architectures of GGUF files that are families of this core, and how their tensors differ.

Names come from the tables of the `gguf` package. Values differ in three ways: llama.cpp rotates neighbouring
pairs of dimensions in Llama and Mistral, so the rows of q and k stand in another sequence. Gemma's norms are
stored as the factor, not minus one. Vectors are always float32.
Source: conversion scripts of llama.cpp (convert_hf_to_gguf.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from gguf import MODEL_ARCH, get_tensor_name_map

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_rows
from jora_core.architecture.tensor_names import TensorRow


@dataclass(frozen=True)
class GgufArchitecture:
    """One architecture of llama.cpp.

    Attributes:
        name: value of general.architecture, and prefix of the fields.
        arch: number in the gguf package.
        family: model_type of the family that computes it.
        paired_rotary: whether the rows of q and k are interleaved.
    """

    name: str
    arch: MODEL_ARCH
    family: str
    paired_rotary: bool = False


_ROWS = (
    GgufArchitecture("llama", MODEL_ARCH.LLAMA, "llama", paired_rotary=True),
    GgufArchitecture("qwen2", MODEL_ARCH.QWEN2, "qwen2"),
    GgufArchitecture("qwen3", MODEL_ARCH.QWEN3, "qwen3"),
    GgufArchitecture("gemma", MODEL_ARCH.GEMMA, "gemma"),
    GgufArchitecture("gemma2", MODEL_ARCH.GEMMA2, "gemma2"),
    GgufArchitecture("gemma3", MODEL_ARCH.GEMMA3, "gemma3_text"),
    GgufArchitecture("olmo2", MODEL_ARCH.OLMO2, "olmo2"),
    GgufArchitecture("phi3", MODEL_ARCH.PHI3, "phi3"),
)
ARCHITECTURES: Mapping[str, GgufArchitecture] = MappingProxyType({row.name: row for row in _ROWS})
# llama.cpp computes Mistral as Llama, and has no window for either.
BY_FAMILY: Mapping[str, GgufArchitecture] = MappingProxyType(
    {row.family: row for row in _ROWS} | {"mistral": _ROWS[0]}
)
HEAD = "output.weight"
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of a model in both layouts.

    Attributes:
        row: its row of the table `TENSORS`.
        layer: number of its layer.
        hf: name in a Hugging Face folder.
        gguf: name in a GGUF file.
    """

    row: TensorRow
    layer: int
    hf: str
    gguf: str


def tensor_places(config: ModelConfig, architecture: GgufArchitecture) -> list[TensorPlace]:
    """Return all tensors of a model, layer by layer."""
    names = get_tensor_name_map(architecture.arch, config.num_layers)
    rows = model_rows(config)
    ahead = [row for row in rows if row.field == "embedding"]
    behind = [row for row in rows if not row.per_layer and row.field != "embedding"]
    ordered = [(row, 0) for row in ahead]
    ordered += [(row, layer) for layer in range(config.num_layers) for row in rows if row.per_layer]
    ordered += [(row, 0) for row in behind]
    places = []
    for row, layer in ordered:
        base = names.get_name(row.prefix(layer))
        assert base is not None, f"{architecture.name} has no name for {row.prefix(layer)}"
        places.append(TensorPlace(row, layer, row.name(layer), f"{base}.{row.kind}"))
    return places


def row_multiple(place: TensorPlace, config: ModelConfig, architecture: GgufArchitecture) -> int:
    """Return how many rows of a tensor belong together: those of a head where heads are interleaved.

    Args:
        place: the tensor.
        config: the model's.
        architecture: the model's.
    """
    return config.head_dim if architecture.paired_rotary and _is_rotated(place) else 1


def to_hf(
    values: np.ndarray, place: TensorPlace, config: ModelConfig, architecture: GgufArchitecture
) -> np.ndarray:
    """Return rows of a GGUF tensor as a Hugging Face folder has them.

    Args:
        values: [rows, columns] of whole heads, or [1, size] of a vector.
        place: the tensor.
        config: the model's.
        architecture: the model's.
    """
    if architecture.paired_rotary and _is_rotated(place):
        # Each head: pairs (0, 1), (2, 3) … become two halves, as in `rotate_half` of transformers.
        heads = values.reshape(-1, config.head_dim // 2, 2, _columns(values, place))
        return heads.swapaxes(1, 2).reshape(values.shape)
    if _is_offset_norm(place, config):
        # The sum was rounded to float32, and so is the difference.
        return values.astype(np.float32) - np.float32(1)
    return values


def to_gguf(
    values: np.ndarray, place: TensorPlace, config: ModelConfig, architecture: GgufArchitecture
) -> np.ndarray:
    """Return rows of a tensor of a Hugging Face folder as a GGUF file has them; the inverse of `to_hf`.

    Args:
        values: [rows, columns] of whole heads, or [1, size] of a vector.
        place: the tensor.
        config: the model's.
        architecture: the model's.
    """
    if architecture.paired_rotary and _is_rotated(place):
        heads = values.reshape(-1, 2, config.head_dim // 2, _columns(values, place))
        return heads.swapaxes(1, 2).reshape(values.shape)
    if _is_offset_norm(place, config):
        return values.astype(np.float32) + np.float32(1)
    return values


def _columns(values: np.ndarray, place: TensorPlace) -> int:
    # A bias is one row, of one value for each row of the weight.
    return values.shape[-1] if place.row.kind == "weight" else 1


def _is_rotated(place: TensorPlace) -> bool:
    return place.row.field in ("q_proj", "k_proj", "q_bias", "k_bias")


def _is_offset_norm(place: TensorPlace, config: ModelConfig) -> bool:
    return config.norm_offset and place.row.field.endswith("norm")
