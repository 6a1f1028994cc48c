"""Access by name to the tensors of a model folder or a file, and a writer of small files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jora_core.base.atomic_files import atomic_path
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.weights.safetensors_reader import FLOATS, TensorFile


def write_tensors(path: Path | str, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one safetensors file atomically, with the metadata format "pt" that `transformers` requires."""
    import safetensors.numpy
    from safetensors import SafetensorError

    with atomic_path(path) as temporary:
        # save_file writes the memory in its own order, so the values of a transposed view would be misplaced.
        whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        try:
            safetensors.numpy.save_file(whole, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)  # the library makes it readable by its owner alone
        except SafetensorError as err:
            raise InputError(f"cannot write {path}: {err}; free space or choose another folder") from None


class TensorStore:
    """Named tensors of one safetensors file, or of a model folder with one file or an index of shards.

    Only headers are read before the first call of `read`. Every error is an InputError that names tensor and
    file.
    """

    def __init__(self, files: Mapping[str, TensorFile]) -> None:
        self._files = dict(files)

    @classmethod
    def of_file(cls, path: Path | str) -> TensorStore:
        """Open one safetensors file."""
        file = _open(Path(path))
        return cls(dict.fromkeys(file.tensors, file))

    @classmethod
    def of_model(cls, folder: Path | str) -> TensorStore:
        """Open ``model.safetensors`` of a model folder, or all shards that its index names."""
        folder = Path(folder)
        index = folder / "model.safetensors.index.json"
        # The whole file wins over an index, as in transformers. Where there is neither, the error names the
        # file.
        if (folder / "model.safetensors").exists() or not index.exists():
            return cls.of_file(folder / "model.safetensors")
        weight_map = read_json_object(index, f"model folder {folder}").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map; expected tensor names and their files")
        shards = {name: _open(folder / name) for name in sorted(set(weight_map.values()))}
        # An index can be older than its shards; without this the error would come in the middle of a load.
        for name, shard in weight_map.items():
            if name not in shards[shard].tensors:
                raise InputError(f"{folder / shard} has no tensor {name}, which {index.name} says it holds")
        return cls({name: shards[shard] for name, shard in weight_map.items()})

    def check(self, expected: Mapping[str, tuple[int, ...]], ignore: frozenset[str] = frozenset()) -> None:
        """Compare the names and shapes of the tensors with those that the config requires.

        Args:
            expected: shape of each tensor, by name.
            ignore: names of optional tensors, which are not checked.

        Raises:
            InputError: a missing, unexpected or misshaped tensor, or one that does not hold floats.
        """
        where = ", ".join(path.name for path in self.files()[:3])
        folder = self.files()[0].parent
        missing = [name for name in expected if name not in self._files]
        if missing:
            raise InputError(f"{folder}: tensor {missing[0]} is missing from {where}{_more(missing)}")
        # Old checkpoints of Llama hold the rotary frequencies, which are computed here.
        extra = [
            n for n in self._files if n not in expected and n not in ignore and not n.endswith("inv_freq")
        ]
        if extra:
            raise InputError(f"{self._files[extra[0]].path}: unexpected tensor {extra[0]}{_more(extra)}")
        for name, shape in expected.items():
            found = self.shape(name)
            if found != shape:
                raise InputError(
                    f"{self._files[name].path}: tensor {name} has shape {found}, expected {shape}"
                )
            if self.dtype(name) not in FLOATS:
                raise InputError(
                    f"{self._files[name].path}: tensor {name} is {self.dtype(name)}, expected floats"
                )

    def names(self) -> list[str]:
        """Return all tensor names, sorted."""
        return sorted(self._files)

    def files(self) -> list[Path]:
        """Return the files that hold the tensors."""
        return sorted({file.path for file in self._files.values()})

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header."""
        return self._files[name].tensors[name].shape

    def dtype(self, name: str) -> str:
        """Return the type of a tensor, by numpy's name, from the header."""
        return self._files[name].tensors[name].dtype

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Read a tensor or a part of it.

        Raises:
            InputError: the part holds NaN or infinity.
        """
        return self._files[name].read(name, index)

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a tensor's bytes, little-endian and row-major as stored."""
        # Of the values alone: the same weights in other shards have the same digests.
        return hashlib.sha256(self.read(name).tobytes()).hexdigest()


def _open(path: Path) -> TensorFile:
    # Pickle files run code when they are loaded, so they are never opened here.
    if not path.exists() and list(path.parent.glob("*.bin")):
        raise InputError(f"{path.parent} holds weights in pickle files only; save them as safetensors first")
    return TensorFile(path)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
