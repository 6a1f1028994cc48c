"""Access by name to the tensors of a model folder or a file, and a writer of small files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jora_core.architecture.tensor_names import head_tensor_name
from jora_core.architecture.text_part import TEXT_PREFIXES, text_tensor_name
from jora_core.base.atomic_files import atomic_path
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object, refuse_lfs_pointer
from jora_core.base.notices import notice
from jora_core.weights.safetensors_reader import FLOATS, TensorFile

# Values that are read at once.
_CHUNK_VALUES = 1 << 20
# Weights in other formats: what they are, and the way out.
_OTHER_WEIGHTS = {
    "*.safetensors": "the shards have no model.safetensors.index.json; fetch that file too",
    "*.gguf": "give the file itself as the model, or convert it with `jora convert FILE DIR`",
    "consolidated.*.pth": "Meta's own layout is read where params.json stands beside the files",
    "consolidated.*": "Mistral's own layout is not read; take the repository in Hugging Face layout",
    "*.bin": "weights in pickle files only; load them with transformers and save them with "
    "save_pretrained, which writes safetensors",
    "*.pt*": "weights in pickle files only; load them with transformers and save them with "
    "save_pretrained, which writes safetensors",
    "*.h5": "weights of TensorFlow are not read; take the repository with safetensors",
    "*.msgpack": "weights of Flax are not read; take the repository with safetensors",
}


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

    def __init__(self, files: Mapping[str, TensorFile], stored: Mapping[str, str] | None = None) -> None:
        """Make a store.

        Args:
            files: file of each tensor, by the name that the model gives it.
            stored: name of a tensor in its file where this name differs.
        """
        self._files = dict(files)
        self._stored = dict(stored or {})

    @classmethod
    def of_file(cls, path: Path | str) -> TensorStore:
        """Open one safetensors file."""
        file = _open(Path(path))
        return cls(dict.fromkeys(file.tensors, file))

    def renamed(self, names: Mapping[str, str]) -> TensorStore:
        """Return a store of the same tensors under other names.

        Args:
            names: the new name of each tensor that gets one, by its present name.
        """
        files = {names.get(name, name): file for name, file in self._files.items()}
        stored = {names.get(name, name): self._stored.get(name, name) for name in self._files}
        return TensorStore(files, stored)

    @classmethod
    def of_model(cls, folder: Path | str) -> TensorStore:
        """Open ``model.safetensors`` of a model folder, or all shards that its index names."""
        folder = Path(folder)
        index = folder / "model.safetensors.index.json"
        # The whole file wins over an index, as in transformers. Where there is neither, the error names the
        # file.
        if (folder / "model.safetensors").exists() or not index.exists():
            return cls.of_file(folder / "model.safetensors")._text_part(folder)
        weight_map = read_json_object(index, f"model folder {folder}").get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(name, str) for name in weight_map.values())
        ):
            raise InputError(f"{index} has no weight_map; expected tensor names and their files")
        names = sorted(set(weight_map.values()))
        if absent := [name for name in names if not (folder / name).exists()]:
            raise InputError(
                f"weights file {folder / absent[0]} does not exist{_more(absent)}, but {index.name} names "
                f"{len(names)} files; fetch the missing ones"
            )
        shards = {name: _open(folder / name) for name in names}
        # An index can be older than its shards; without this the error would come in the middle of a load.
        for name, shard in weight_map.items():
            if name not in shards[shard].tensors:
                raise InputError(f"{folder / shard} has no tensor {name}, which {index.name} says it holds")
        return cls({name: shards[shard] for name, shard in weight_map.items()})._text_part(folder)

    def _text_part(self, folder: Path) -> TensorStore:
        """Return the tensors of the text part of a model of images and text, by their names in the part."""
        if not any(name.startswith(prefix) for name in self._files for prefix, _ in TEXT_PREFIXES):
            return self
        names = {name: text_tensor_name(name) for name in self._files}
        kept = {ours: name for name, ours in names.items() if ours is not None}
        if left := len(names) - len(kept):
            notice(f"{folder}: the text part is read; {left} tensors of the image part are left out")
        return TensorStore({ours: self._files[name] for ours, name in kept.items()}, kept)

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
            head = head_tensor_name()
            advice = (
                "; if the model's head is its embedding, set tie_word_embeddings to true in config.json"
                if missing == [head]
                else ""
            )
            raise InputError(f"{folder}: tensor {missing[0]} is missing from {where}{_more(missing)}{advice}")
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
        return self._files[name].tensors[self._stored.get(name, name)].shape

    def dtype(self, name: str) -> str:
        """Return the type of a tensor, by numpy's name, from the header."""
        return self._files[name].tensors[self._stored.get(name, name)].dtype

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Read a tensor or a part of it.

        Raises:
            InputError: the part holds NaN or infinity.
        """
        return self._files[name].read(self._stored.get(name, name), index)

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a tensor's bytes, little-endian and row-major as stored."""
        # Of the values alone: the same weights in other shards have the same digests.
        digest = hashlib.sha256()
        for part in row_slices(self.shape(name)):
            digest.update(self.read(name, part).tobytes())
        return digest.hexdigest()


def row_slices(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield slices of rows that together cover a tensor, each of about a million values."""
    if not shape:
        yield ()
        return
    size, *widths = shape
    count = max(1, _CHUNK_VALUES // math.prod(widths))
    for first in range(0, size, count):
        yield slice(first, first + count), *[slice(None)] * len(widths)


def _open(path: Path) -> TensorFile:
    # Pickle files run code when they are loaded, so they are never opened here.
    if not path.exists():
        for pattern, advice in _OTHER_WEIGHTS.items():
            if found := sorted(path.parent.glob(pattern)):
                raise InputError(f"{path.parent} has no {path.name}, but {found[0].name}: {advice}")
    elif path.is_file():
        with path.open("rb") as file:
            head = file.read(64)
        refuse_lfs_pointer(path, head)
        if head.startswith(b"GGUF"):
            raise InputError(f"{path} is a GGUF file and not safetensors: {_OTHER_WEIGHTS['*.gguf']}")
    return TensorFile(path)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
