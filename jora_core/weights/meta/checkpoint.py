"""The weights of a Llama model in Meta's own layout: ``params.json`` and ``consolidated.*.pth``.

Each file holds a part of every matrix, as one device of Meta's code had it: some rows where the outputs were
split, some columns where the inputs were. torch maps the files and loads weights alone, so no code in them
runs, and a tensor is read when its rows are asked for.
Source: `llama/model.py` of Meta's reference code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.specs.model_sources import META_PARAMS, meta_shards
from jora_core.weights.safetensors_reader import numpy_dtype

# The axis along which the files hold parts of a tensor, by the end of its name; norms are whole in each file.
_AXES = {
    "attention.wq": 0,
    "attention.wk": 0,
    "attention.wv": 0,
    "attention.wo": 1,
    "feed_forward.w1": 0,
    "feed_forward.w2": 1,
    "feed_forward.w3": 0,
    "output": 0,
}
EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"
# Computed here from the config.
_IGNORED = "rope.freqs"
_TYPES = ("float32", "float16", "bfloat16")


class MetaModel:
    """An open model in Meta's layout: its parameters, and its tensors joined from all files."""

    def __init__(self, folder: Path) -> None:
        """Open all files.

        Raises:
            InputError: torch is not installed, a file is missing or cannot be read, or the files differ.
        """
        self.path = folder
        self.params = read_json_object(folder / META_PARAMS, f"model folder {folder}")
        self._files = _shards(folder)
        self._parts = [_load(file) for file in self._files]
        first = self._parts[0].keys()
        for file, part in zip(self._files, self._parts, strict=True):
            if odd := sorted(part.keys() ^ first):
                raise InputError(
                    f"{file} and {self._files[0].name} differ: tensor {odd[0]} is in one of them alone; "
                    "fetch all files of one model"
                )
        self.names = [name for name in first if name != _IGNORED]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        shapes = [tuple(part[name].shape) for part in self._parts]
        axis = self._axis(name)
        rest = {shape[:axis] + shape[axis + 1 :] if axis is not None else shape for shape in shapes}
        if len(rest) > 1:
            raise InputError(f"{self.path}: the parts of tensor {name} do not fit together: {shapes}")
        if axis is None:
            return shapes[0]
        return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])

    def dtype(self, name: str) -> str:
        """Return the type of a tensor by numpy's name.

        Raises:
            InputError: the parts have different types, or one that holds no plain floats.
        """
        kinds = sorted({str(part[name].dtype).removeprefix("torch.") for part in self._parts})
        if len(kinds) > 1 or kinds[0] not in _TYPES:
            raise InputError(
                f"{self.path}: tensor {name} is {', '.join(kinds)}, expected one of {', '.join(_TYPES)}; "
                "take the model without quantization"
            )
        return kinds[0]

    def read_rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Read some rows of a whole tensor; a vector is one row.

        Args:
            name: name of the tensor.
            first: number of the first row.
            last: number of the row after the last one.

        Returns:
            The values [rows, columns] in their own type.

        Raises:
            InputError: a value is NaN or infinite, or copies of one vector differ.
        """
        parts = [part[name] for part in self._parts]
        axis = self._axis(name)
        if axis is None:
            copies = [_values(part).reshape(1, -1) for part in parts]
            if any(not np.array_equal(copy, copies[0]) for copy in copies[1:]):
                raise InputError(f"{self.path}: the files have different values of {name}; fetch them again")
            found = copies[0]
        elif axis == 1:
            found = np.concatenate([_values(part[first:last]) for part in parts], axis=1)
        else:
            pieces, begin = [], 0
            for part in parts:
                pieces.append(_values(part[max(first - begin, 0) : max(last - begin, 0)]))
                begin += len(part)
            found = np.concatenate(pieces)
        if not np.isfinite(found).all():
            raise InputError(f"{self.path}: tensor {name} holds NaN or infinite values")
        return found

    def _axis(self, name: str) -> int | None:
        """Return the axis along which a tensor is split; None for one that every file has whole."""
        if len(self._parts) == 1:
            return None if len(self._parts[0][name].shape) == 1 else 0
        if name == EMBEDDING:
            # Llama 3 splits the vocabulary, Llama 1 and 2 the width.
            return 0 if self._parts[0][name].shape[1] == self.params.get("dim") else 1
        return next((axis for end, axis in _AXES.items() if name.endswith(f"{end}.weight")), None)


def _shards(folder: Path) -> list[Path]:
    files = meta_shards(folder)
    wanted = [f"consolidated.{number:02d}.pth" for number in range(len(files))]
    if missing := sorted({*wanted} - {file.name for file in files}):
        raise InputError(f"{folder}: {missing[0]} is missing; fetch all files of the model into this folder")
    return files


def _load(path: Path) -> Mapping[str, Any]:
    """Open one file; its tensors stay on disk until they are read."""
    try:
        import torch  # noqa: TID251
    except ImportError:
        raise InputError(
            f"{path}: Meta's files are read with torch, which is not installed; run `pip install torch`, or "
            "take the model in Hugging Face layout"
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of the unpickler, the zip reader and the disk
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} cannot be loaded as weights alone ({reason:.200}); fetch it again, or take the model in "
            "Hugging Face layout"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path} holds other things than named tensors; expected the weights of a model")
    return found


def _values(tensor: Any) -> np.ndarray:
    """Copy a tensor of torch to numpy, by way of float32, which has each value of the narrower types."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return tensor.float().numpy().astype(numpy_dtype(kind))
