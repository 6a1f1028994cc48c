"""Writing of a model folder as a GGUF file, a few rows of one tensor at a time.

The `gguf` package writes the header and quantizes. It quantizes to Q8_0 and to simpler types; the K types,
such as Q4_K_M, are made by `llama-quantize` of llama.cpp from the F16 file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, quantize

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.atomic_files import atomic_path
from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from jora_core.base.progress import progress
from jora_core.parameters.freed_memory import release_freed_memory
from jora_core.specs.model_files import GgufType
from jora_core.weights.checkpoint_folder import open_weights
from jora_core.weights.gguf.architectures import (
    GgufArchitecture,
    TensorPlace,
    row_multiple,
    tensor_places,
    to_gguf,
)
from jora_core.weights.gguf.gguf_file import CHUNK_VALUES, GgufModel
from jora_core.weights.gguf.read_config import read_config
from jora_core.weights.gguf.write_config import write_config
from jora_core.weights.gguf.write_tokenizer import chat_templates, tokenizer_fields, turn_end
from jora_core.weights.tensor_store import TensorStore

_F32, _F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
_TYPES: Mapping[GgufType, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (_F32, LlamaFileType.ALL_F32),
    "f16": (_F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# Fields of the config that a file has no place for, or that only the folder's files say.
_NOT_IN_FILE = ("initializer_range", "bos_token_id", "eos_token_ids", "pad_token_id")


def write_gguf(
    folder: Path,
    config: ModelConfig,
    path: Path,
    kind: GgufType,
    name: str,
    *,
    tokenizer: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder as one GGUF file, atomically.

    Args:
        folder: model folder in Hugging Face layout.
        config: the model's.
        path: file to write.
        kind: type of the matrices; vectors are always float32.
        name: name of the model in the file.
        tokenizer: fields of the folder's tokenizer, where they are known; see `tokenizer_fields`.

    Raises:
        InputError: llama.cpp would compute the model or read its texts differently, a value does not fit into
            the type, or the file cannot be written.
    """
    architecture, fields, extra = write_config(config, str(folder))
    # Of the weights alone: the tokenizer is read once, below.
    store = open_weights(folder, config)
    places = tensor_places(config, architecture)
    kinds = {place.gguf: _kind(place, store, kind) for place in places}
    narrow = [
        place.hf for place in places if len(place.row.shape) == 2 and kinds[place.gguf] != _TYPES[kind][0]
    ]
    if narrow:
        notice(
            f"{folder}: rows of {len(narrow)} tensors, such as {narrow[0]}, are no whole blocks of {kind}; "
            "they are written as f16"
        )
    with atomic_path(path) as temporary:
        writer = GGUFWriter(temporary, architecture.name)
        try:
            tokens = tokenizer or tokenizer_fields(folder, config.vocab_size)
            _add_metadata(writer, architecture, fields, {**tokens, **turn_end(folder, tokens)})
            del tokens
            writer.add_name(name)
            writer.add_file_type(_TYPES[kind][1])
            for template, text in chat_templates(folder).items():
                key = "tokenizer.chat_template"
                writer.add_string(key if template == "default" else f"{key}.{template}", text)
            for extra_name, values in extra.items():
                writer.add_tensor_info(extra_name, values.shape, values.dtype, values.nbytes, _F32)
            for place in places:
                shape = store.shape(place.hf)
                size = _bytes(shape, kinds[place.gguf])
                writer.add_tensor_info(place.gguf, shape, np.dtype(np.float32), size, kinds[place.gguf])
            _write_file(writer, extra, places, _Source(store, config, architecture, kinds))
        finally:
            writer.close()
        check_gguf(temporary, folder, config)


@dataclasses.dataclass(frozen=True)
class _Source:
    """The tensors of a folder as a file has them."""

    store: TensorStore
    config: ModelConfig
    architecture: GgufArchitecture
    kinds: Mapping[str, GGMLQuantizationType]

    def parts(self, place: TensorPlace) -> Iterator[np.ndarray]:
        """Yield a tensor in parts of whole rows, in its type in the file."""
        shape = self.store.shape(place.hf)
        if len(shape) == 1:
            values = self.store.read(place.hf).astype(np.float32).reshape(1, -1)
            yield to_gguf(values, place, self.config, self.architecture)
            return
        multiple = row_multiple(place, self.config, self.architecture)
        step = max(1, CHUNK_VALUES // (shape[1] * multiple)) * multiple
        for first in range(0, shape[0], step):
            values = self.store.read(place.hf, (slice(first, first + step), slice(None))).astype(np.float32)
            values = to_gguf(values, place, self.config, self.architecture)
            yield self._encoded(np.ascontiguousarray(values), place)

    def _encoded(self, values: np.ndarray, place: TensorPlace) -> np.ndarray:
        kind = self.kinds[place.gguf]
        # Q8_0 has an F16 factor for each block, which is 1/127 of the largest value.
        largest = float(np.abs(values).max())
        if largest > (np.finfo(np.float16).max if kind == _F16 else np.finfo(np.float32).max):
            raise InputError(f"{place.hf} holds values that f16 cannot; choose export.gguf f32 or bf16")
        return quantize(values, kind)


def _kind(place: TensorPlace, store: TensorStore, kind: GgufType) -> GGMLQuantizationType:
    """Return the type of a tensor in the file."""
    if len(place.row.shape) == 1:
        return _F32
    wanted = _TYPES[kind][0]
    # As the converter of llama.cpp does.
    return wanted if store.shape(place.hf)[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else _F16


def _bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    values, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // values * size


def _add_metadata(
    writer: GGUFWriter, architecture: GgufArchitecture, fields: Mapping[str, Any], tokens: Mapping[str, Any]
) -> None:
    named = {f"{architecture.name}.{name}": value for name, value in fields.items()}
    named |= {f"tokenizer.ggml.{name}": value for name, value in tokens.items()}
    writer.add_type("model")
    writer.add_quantization_version(2)
    for name, value in named.items():
        # bool first: it is an int in Python.
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)


def _write_file(
    writer: GGUFWriter, extra: Mapping[str, np.ndarray], places: list[TensorPlace], source: _Source
) -> None:
    """Write header and tensors. The writer's own method takes whole tensors only."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # The lists of a large vocabulary are not needed any more.
    writer.kv_data.clear()
    release_freed_memory()
    assert writer.fout is not None
    (out,) = writer.fout
    with progress("write gguf", len(places), shown=True) as bar:
        writer.write_padding(out, out.tell())
        for values in extra.values():
            out.write(values.tobytes())
            writer.write_padding(out, values.nbytes)
        for place in places:
            size = 0
            for part in source.parts(place):
                out.write(part.tobytes())
                size += part.nbytes
            writer.write_padding(out, size)
            bar.advance()


def check_gguf(path: Path, folder: Path, config: ModelConfig) -> None:
    """Read the configuration of a written file, and compare it with the folder's.

    Args:
        path: the file.
        folder: the model folder that it was made of, for the error.
        config: the folder's.

    Raises:
        RuntimeError: the file says another model.
    """
    found = read_config(GgufModel(path, texts=False))
    # llama.cpp computes Mistral as Llama.
    same = {name: getattr(config, name) for name in _NOT_IN_FILE} | {"family": config.family}
    for field in dataclasses.fields(config):
        ours = getattr(config, field.name)
        theirs = same[field.name] if field.name in same else getattr(found, field.name)
        if not _equal(ours, theirs):
            raise RuntimeError(f"{folder}: {field.name} is {ours!r}, and {theirs!r} in the GGUF file")


def _equal(ours: Any, theirs: Any) -> bool:
    if dataclasses.is_dataclass(ours) and dataclasses.is_dataclass(theirs):
        names = [field.name for field in dataclasses.fields(ours)]
        return all(_equal(getattr(ours, name), getattr(theirs, name)) for name in names)
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)  # the file has float32
    return bool(ours == theirs)
