"""Conversion of a GGUF file to a model folder in Hugging Face layout, a few rows at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors
from jora_core.base.atomic_files import write_bytes, write_json
from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from jora_core.base.progress import progress
from jora_core.weights.companion_files import GGUF_SOURCE
from jora_core.weights.gguf.architectures import (
    GgufArchitecture,
    TensorPlace,
    row_multiple,
    tensor_places,
    to_hf,
)
from jora_core.weights.gguf.gguf_file import PLAIN_TYPES, GgufModel
from jora_core.weights.gguf.read_config import architecture_of, read_config
from jora_core.weights.gguf.read_tokenizer import write_tokenizer
from jora_core.weights.gguf.rope_factors import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from jora_core.weights.safetensors_reader import numpy_dtype
from jora_core.weights.safetensors_writer import write_shards

# A vector from a narrower type, after one was added and taken away again.
_ROUNDING = 1.2e-7


def convert_gguf(path: Path, folder: Path) -> dict[str, str]:
    """Write the model of a GGUF file as a Hugging Face folder.

    Quantized weights become float32, which is exact. Weights of one narrower type keep it.

    Args:
        path: the file, or one part of a split one.
        folder: folder to write, made if missing.

    Returns:
        SHA-256 of the values of each tensor, by its name in the folder.

    Raises:
        InputError: the file cannot be read or has a model that this core does not compute.
    """
    model = GgufModel(path)
    architecture, config = architecture_of(model), read_config(model)
    places = {place.hf: place for place in tensor_places(config, architecture)}
    shapes = expected_tensors(config)
    _check_tensors(model, places, shapes)
    # Before the weights: an unknown tokenizer is told at once.
    write_tokenizer(model, folder)
    dtype = _common_type(model, list(places.values()), config, architecture)

    def read(place: TensorPlace) -> Iterator[np.ndarray]:
        return model.read_parts(place.gguf, row_multiple(place, config, architecture))

    digests = write_converted(folder, config, (places, architecture), dtype, read)
    _write_source(model, folder, dtype)
    return digests


def convert_gguf_tokenizer(path: Path, folder: Path) -> None:
    """Write the tokenizer of a GGUF file alone.

    Raises:
        InputError: the file cannot be read, or the tokenizer is of an unknown kind.
    """
    write_tokenizer(GgufModel(path), folder)


def write_converted(
    folder: Path,
    config: ModelConfig,
    places: tuple[Mapping[str, TensorPlace], GgufArchitecture],
    dtype: str,
    read: Callable[[TensorPlace], Iterable[np.ndarray]],
) -> dict[str, str]:
    """Write the weights and ``config.json`` of a model, a few rows at a time.

    Args:
        folder: folder to write, made if missing.
        config: the model's configuration.
        places: each tensor's place in the source, by its name in the folder, and the source's architecture.
        dtype: type of all tensors, by numpy's name.
        read: returns the values of a tensor of the source, in parts of whole rows.

    Returns:
        SHA-256 of the values of each tensor, by its name in the folder.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    place_of, architecture = places
    shapes = expected_tensors(config)
    digests = {name: hashlib.sha256() for name in place_of}

    def parts(name: str) -> Iterator[np.ndarray]:
        place = place_of[name]
        for values in read(place):
            part = to_hf(values, place, config, architecture).astype(numpy_dtype(dtype))
            digests[name].update(part.tobytes())
            yield part
        bar.advance()

    with progress("convert tensors", len(place_of)) as bar:
        write_shards(folder, {name: shapes[name] for name in place_of}, dtype, parts)
    write_json(folder / "config.json", config.to_hf() | {"torch_dtype": dtype})
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _check_tensors(
    model: GgufModel, places: dict[str, TensorPlace], shapes: dict[str, tuple[int, ...]]
) -> None:
    known = {place.gguf for place in places.values()} | {ROPE_FREQS, ROPE_LONG, ROPE_SHORT}
    for name, place in places.items():
        if not model.has(place.gguf):
            raise InputError(f"{model.path}: tensor {place.gguf} is missing; fetch the file again")
        found = model.tensor(place.gguf).shape
        if found != shapes[name]:
            raise InputError(
                f"{model.path}: tensor {place.gguf} has shape {found}, expected {shapes[name]}; the fields "
                "of the "
                "file do not fit its tensors"
            )
    if unknown := [name for name in model.names if name not in known]:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise InputError(
            f"{model.path}: unexpected tensor {unknown[0]}{more}, which this core does not compute"
        )


def _common_type(
    model: GgufModel, places: list[TensorPlace], config: ModelConfig, architecture: GgufArchitecture
) -> str:
    """Return the narrowest type that holds all values of the model."""
    kinds = {model.tensor(place.gguf).kind for place in places if len(place.row.shape) == 2}
    if len(kinds) != 1 or not kinds <= PLAIN_TYPES.keys():
        return "float32"
    dtype = PLAIN_TYPES[kinds.pop()]
    # llama.cpp stores vectors in float32, whatever they come from.
    for place in places:
        if len(place.row.shape) == 2:
            continue
        values = to_hf(model.read(place.gguf).reshape(1, -1), place, config, architecture)
        narrow = values.astype(numpy_dtype(dtype)).astype(np.float32)
        if np.abs(narrow - values).max() > _ROUNDING * max(1.0, float(np.abs(values).max())):
            return "float32"
    return "float32" if dtype == "float64" else dtype


def _write_source(model: GgufModel, folder: Path, dtype: str) -> None:
    """Say where the folder comes from, and under which licence."""
    kinds = sorted({model.tensor(name).kind.name for name in model.names})
    fields = {
        name: str(model.metadata[f"general.{name}"])
        for name in ("name", "organization", "license", "license.name", "license.link", "source.url")
        if f"general.{name}" in model.metadata
    }
    if set(kinds) - {kind.name for kind in PLAIN_TYPES}:
        size = sum(math.prod(model.tensor(name).shape) for name in model.names) * numpy_dtype(dtype).itemsize
        notice(f"{model.path}: {', '.join(kinds)} become {dtype}, {size / 1e6:,.0f} MB")
    write_json(folder / GGUF_SOURCE, {"file": model.path.name, "types": kinds, **fields})
    for path in sorted(model.path.parent.glob("LICENSE*")) + sorted(model.path.parent.glob("NOTICE*")):
        if path.is_file():
            write_bytes(folder / path.name, path.read_bytes())
