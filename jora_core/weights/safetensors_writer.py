"""Writing of a model's safetensors files one tensor at a time, in the layout of `transformers`.

A header needs only names, types and shapes. So the header is written first, and each part of a tensor is
written as soon as it is made. In memory there is one part of one tensor. The bytes are the same as from the
safetensors library.
Format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.weights.safetensors_reader import FLOAT_NAMES, numpy_dtype

MAX_SHARD_SIZE = 5_000_000_000  # what `save_pretrained` of transformers has long written
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CODES = {name: code for code, name in FLOAT_NAMES.items()}

Shapes = Mapping[str, tuple[int, ...]]


def write_shards(
    folder: Path,
    shapes: Shapes,
    dtype: str,
    parts: Callable[[str], Iterable[np.ndarray]],
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write ``model.safetensors``, or shards and their index where it would be larger than `max_shard_size`.

    All files are written under temporary names and renamed when all are complete, the index last. A failure
    leaves the folder unchanged. A kill may also leave hidden temporary files. Weights files of another model
    in the folder are removed at the end, because readers could prefer them.

    Args:
        folder: folder to write, made if missing.
        shapes: shape of each tensor, by name.
        dtype: type of all tensors, by numpy's name.
        parts: called once for each name; returns the tensor's values in row-major order, in one or more
            arrays.
        max_shard_size: largest number of tensor bytes in a file; a larger tensor has a separate file.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    shards = plan_shards(shapes, dtype, max_shard_size)
    with ExitStack() as written:  # renames all files on success, removes all on failure
        for name, tensors in shards.items():
            temporary = written.enter_context(atomic_path(folder / name))
            with temporary.open("wb") as handle:
                _write_file(handle, {tensor: shapes[tensor] for tensor in tensors}, dtype, parts)
        # Between here and the new index there is none: the old one may name shards that are now new.
        (folder / _INDEX).unlink(missing_ok=True)
    if _WHOLE not in shards:
        counts = [math.prod(shape) for shape in shapes.values()]
        size = sum(counts) * numpy_dtype(dtype).itemsize
        weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
        write_json(
            folder / _INDEX,
            {
                "metadata": {"total_parameters": sum(counts), "total_size": size},
                "weight_map": dict(sorted(weight_map.items())),
            },
        )
    for path in (folder / _WHOLE, *folder.glob("model-*-of-*.safetensors")):
        if path.name not in shards:
            path.unlink(missing_ok=True)


def plan_shards(shapes: Shapes, dtype: str, max_shard_size: int) -> dict[str, list[str]]:
    """Divide tensors among files, in sequence. A tensor that does not fit begins a new file.

    Args:
        shapes: shape of each tensor by name, in the order of the model.
        dtype: type of all tensors, by numpy's name.
        max_shard_size: largest number of tensor bytes in a file.
    """
    groups: list[list[str]] = [[]]
    room = max_shard_size
    for name, shape in shapes.items():
        size = math.prod(shape) * numpy_dtype(dtype).itemsize
        # A tensor is never cut: one that is larger than the limit is alone in its file.
        if groups[-1] and size > room:
            groups.append([])
            room = max_shard_size
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {_WHOLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_file(
    handle: BinaryIO, shapes: Shapes, dtype: str, parts: Callable[[str], Iterable[np.ndarray]]
) -> None:
    """Write one file: length of the header, header, values, with tensors sorted by name as in the library."""
    names = sorted(shapes)
    # `transformers` requires the format "pt" in the metadata.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + math.prod(shapes[name]) * numpy_dtype(dtype).itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the values begin at a multiple of eight
    handle.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        missing = math.prod(shapes[name])
        for part in parts(name):
            # Values of another width would shift all tensors after this one, without an error on reading.
            if part.dtype != numpy_dtype(dtype):
                raise ValueError(f"{name} is {part.dtype}, not {dtype} as its header says")
            missing -= part.size
            # As bytes: numpy's bfloat16 has no buffer that a file accepts.
            handle.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        if missing:
            raise ValueError(f"{name}: {missing} values fewer than its shape {shapes[name]} has")
