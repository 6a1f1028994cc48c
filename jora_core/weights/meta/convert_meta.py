"""Conversion of a model in Meta's layout to a model folder in Hugging Face layout, a few rows at a time.

Meta rotates neighbouring pairs of dimensions, as GGUF files of Llama do, so the rows of q and k are put into
halves in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors
from jora_core.base.atomic_files import write_bytes
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_flag, read_number
from jora_core.base.notices import notice
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.model_sources import META_PARAMS
from jora_core.weights.gguf.architectures import (
    ARCHITECTURES,
    TensorPlace,
    row_multiple,
    tensor_places,
)
from jora_core.weights.gguf.convert_gguf import write_converted
from jora_core.weights.meta.checkpoint import EMBEDDING, HEAD, MetaModel
from jora_core.weights.meta.tokenizer import write_meta_tokenizer
from jora_core.weights.tensor_store import row_slices

_LLAMA = ARCHITECTURES["llama"]
# Modules of Meta's code by our fields; those of a layer stand behind ``layers.N.``.
_MODULES = {
    "embedding": "tok_embeddings",
    "attention_norm": "attention_norm",
    "q_proj": "attention.wq",
    "k_proj": "attention.wk",
    "v_proj": "attention.wv",
    "o_proj": "attention.wo",
    "mlp_norm": "ffn_norm",
    "gate_proj": "feed_forward.w1",
    "down_proj": "feed_forward.w2",
    "up_proj": "feed_forward.w3",
    "final_norm": "norm",
    "head": "output",
}
# Fields of params.json that are read, and those that the weights say better or that no weight depends on.
_READ = {"dim", "n_layers", "n_heads", "n_kv_heads", "norm_eps", "rope_theta", "use_scaled_rope"}
_READ |= {"rope_scaling_factor", "max_seq_len"}
_SILENT = {"vocab_size", "multiple_of", "ffn_dim_multiplier", "max_batch_size"}
# Llama 3.2's models of 1B and 3B scale by 32, all others by 8. The file does not say which it is.
_FACTORS = {2048: 32.0, 3072: 32.0}
_FACTOR, _ORIGINAL_LENGTH = 8.0, 8192


def convert_meta(source: Path, folder: Path) -> dict[str, str]:
    """Write a model in Meta's layout as a Hugging Face folder.

    Args:
        source: folder with ``params.json``, ``consolidated.*.pth`` and the tokenizer.
        folder: folder to write, made if missing.

    Returns:
        SHA-256 of the values of each tensor, by its name in the folder.

    Raises:
        InputError: the model cannot be read, or is one that this core does not compute.
    """
    model = MetaModel(source)
    if missing := [name for name in (EMBEDDING, _name("gate_proj", 0)) if name not in model.names]:
        raise InputError(f"{source}: tensor {missing[0]} is missing; expected a Llama model in Meta's layout")
    rows = model.shape(EMBEDDING)[0]
    # Before the weights: an unknown tokenizer is told at once.
    write_meta_tokenizer(source, folder, rows, _has_scaled_rope(model))
    tokenizer = load_tokenizer(folder, rows)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    config = read_config(model, ids)
    places = {place.hf: place for place in tensor_places(config, _LLAMA)}
    shapes = expected_tensors(config)
    _check_tensors(model, places, shapes)
    kinds = {model.dtype(_name_of(place)) for place in places.values()}
    dtype = kinds.pop() if len(kinds) == 1 else "float32"

    def read(place: TensorPlace) -> Iterator[np.ndarray]:
        return _read_parts(model, place, config)

    digests = write_converted(folder, config, (places, _LLAMA), dtype, read)
    for path in sorted(source.glob("LICENSE*")) + sorted(source.glob("NOTICE*")):
        if path.is_file():
            write_bytes(folder / path.name, path.read_bytes())
    return digests


def convert_meta_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer of a model in Meta's layout alone.

    Raises:
        InputError: a file cannot be read, or the tokenizer is of an unknown kind.
    """
    model = MetaModel(source)
    write_meta_tokenizer(source, folder, model.shape(EMBEDDING)[0], _has_scaled_rope(model))


def read_config(model: MetaModel, ids: dict[str, Any]) -> ModelConfig:
    """Return the configuration of a model in Meta's layout. What its file leaves open is said in a notice.

    Args:
        model: the open model.
        ids: fields of ``config.json`` with the ids of special tokens.

    Raises:
        InputError: a field is missing, or says something that this core does not compute.
    """
    where, params = str(model.path / META_PARAMS), model.params
    for name in sorted(params.keys() - _READ - _SILENT):
        if params[name] not in (None, False):
            raise InputError(
                f"{where}: {name} is not supported; take the model in Hugging Face layout"
                + (", without quantization" if "quantization" in name else "")
            )
    heads = read_number(where, params, "n_heads", int)
    theta = float(read_number(where, params, "rope_theta", float, 10000.0))
    given: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": model.shape(EMBEDDING)[0],
        "hidden_size": read_number(where, params, "dim", int),
        # params.json has a formula for it; the weights have the result.
        "intermediate_size": model.shape(_name("gate_proj", 0))[0],
        "num_hidden_layers": read_number(where, params, "n_layers", int),
        "num_attention_heads": heads,
        "num_key_value_heads": read_number(where, params, "n_kv_heads", int, heads),
        "max_position_embeddings": _longest(model, theta),
        "rms_norm_eps": float(read_number(where, params, "norm_eps", float)),
        "rope_theta": theta,
        "tie_word_embeddings": _tied(model),
        **ids,
    }
    if _has_scaled_rope(model):
        factor = float(read_number(where, params, "rope_scaling_factor", float, 0.0))
        if not factor:
            factor = _FACTORS.get(given["hidden_size"], _FACTOR)
            notice(f"{where}: it does not say the factor of its rotary scaling; {factor:g} is taken")
        given["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": _ORIGINAL_LENGTH,
        }
    return ModelConfig.from_fields(given, where)


def _has_scaled_rope(model: MetaModel) -> bool:
    """Return whether the rotary frequencies are scaled, as in Llama 3.1 and later."""
    return read_flag(
        str(model.path / META_PARAMS), {"use_scaled_rope": False, **model.params}, "use_scaled_rope"
    )


def _longest(model: MetaModel, theta: float) -> int:
    """Return the longest context: the file's, or that of the release that has such parameters."""
    where, params = str(model.path / META_PARAMS), model.params
    if params.get("max_seq_len") is not None:
        return read_number(where, params, "max_seq_len", int)
    if _has_scaled_rope(model):
        found = 131072  # Llama 3.1 and later
    elif theta >= 500000 and theta != 1000000:
        found = 8192  # Llama 3
    elif theta > 10000:
        found = 16384  # Code Llama
    else:
        found = 4096 if params.get("norm_eps") == 1e-5 else 2048  # Llama 2, Llama 1
    notice(f"{where}: it does not say the longest context; {found:,} tokens are taken")
    return found


def _tied(model: MetaModel) -> bool:
    """Return whether the output projection is the embedding, which is then stored once."""
    if HEAD not in model.names:
        return True
    shape = model.shape(EMBEDDING)
    if model.shape(HEAD) != shape:
        return False
    for part in row_slices(shape):
        ours, theirs = (model.read_rows(name, part[0].start, part[0].stop) for name in (EMBEDDING, HEAD))
        if not np.array_equal(ours, theirs):
            return False
    return True


def _read_parts(model: MetaModel, place: TensorPlace, config: ModelConfig) -> Iterator[np.ndarray]:
    """Yield a tensor in parts of whole rows, or of whole heads where rows change their places."""
    name = _name_of(place)
    shape = model.shape(name)
    if len(shape) == 1:
        yield model.read_rows(name, 0, 1)
        return
    multiple = row_multiple(place, config, _LLAMA)
    step = next(row_slices(shape))[0].stop
    step = max(1, step // multiple) * multiple
    for first in range(0, shape[0], step):
        yield model.read_rows(name, first, min(first + step, shape[0]))


def _check_tensors(
    model: MetaModel, places: dict[str, TensorPlace], shapes: dict[str, tuple[int, ...]]
) -> None:
    wanted = {_name_of(place): shapes[name] for name, place in places.items()}
    for name, shape in wanted.items():
        if name not in model.names:
            raise InputError(f"{model.path}: tensor {name} is missing; fetch the files again")
        if (found := model.shape(name)) != shape:
            raise InputError(
                f"{model.path}: tensor {name} has shape {found} in all files together, expected {shape}; "
                f"{META_PARAMS} does not fit the weights, or a file is missing"
            )
    # The head of a tied model may be stored, too.
    if unknown := sorted({*model.names} - wanted.keys() - {HEAD}):
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise InputError(f"{model.path}: unexpected tensor {unknown[0]}{more}; expected a Llama model")


def _name_of(place: TensorPlace) -> str:
    return _name(place.row.field, place.layer if place.row.per_layer else None)


def _name(field: str, layer: int | None) -> str:
    return f"{'' if layer is None else f'layers.{layer}.'}{_MODULES[field]}.weight"
