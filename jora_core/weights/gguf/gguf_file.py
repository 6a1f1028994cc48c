"""The header and the tensors of a GGUF file, which are read a few rows at a time.

The header is parsed here, because the reader of the `gguf` package keeps several objects for each token of
the vocabulary: 684 MB for Gemma 3, where this parser needs 33 MB. The blocks of quantized tensors are
decoded by that package.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from jora_core.base.errors import InputError, read_error
from jora_core.base.json_fields import refuse_lfs_pointer
from jora_core.specs.model_sources import gguf_parts
from jora_core.weights.safetensors_reader import numpy_dtype

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# struct's code of each type of a metadata value that has a fixed size.
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Types whose values are stored one by one, by numpy's names.
PLAIN_TYPES = {
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
    GGMLQuantizationType.BF16: "bfloat16",
    GGMLQuantizationType.F64: "float64",
}
_MOST_DIMENSIONS = 4
# Values that are decoded at once.
CHUNK_VALUES = 1 << 20


@dataclass(frozen=True)
class GgufTensor:
    """Where and how one tensor is stored.

    Attributes:
        shape: the shape, rows first; the file has it the other way round.
        kind: type of the stored values or blocks.
        offset: first byte in the file.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int

    @property
    def row_bytes(self) -> int:
        """Number of bytes of one row."""
        values, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // values * size

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class GgufFile:
    """An open GGUF file: its metadata, the places of its tensors, and their values on demand."""

    def __init__(self, path: Path, *, texts: bool = True) -> None:
        """Open a file and read its header.

        Args:
            path: the file.
            texts: False leaves lists of texts, such as the vocabulary, empty.

        Raises:
            InputError: the file is missing, unreadable, truncated, or no GGUF file that can be decoded.
        """
        self.path, self._texts = path, texts
        try:
            with path.open("rb") as handle:
                head = handle.read(64)
                refuse_lfs_pointer(path, head)
                if head[:4] != _MAGIC:
                    raise InputError(
                        f"{path} is no GGUF file: it begins with {head[:4]!r} and not with {_MAGIC!r}; "
                        "fetch it "
                        "again, or give a file that llama.cpp reads"
                    )
                self._data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise read_error(path, error) from error
        self._handle = path.open("rb", buffering=0)
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, MemoryError, OverflowError) as error:
            raise InputError(
                f"{path} is truncated or damaged: its header ends early ({error}); fetch it again"
            ) from None
        finally:
            self._data.close()  # pages of a mapped file count as memory

    def _read_header(self) -> None:
        (version,) = struct.unpack_from("<I", self._data, 4)
        if version not in _VERSIONS:
            big = version & 0xFFFF == 0
            raise InputError(
                f"{self.path}: GGUF version {version} is not read{' (big-endian)' if big else ''}; expected "
                f"{' or '.join(map(str, _VERSIONS))}; convert the file with a newer llama.cpp"
            )
        tensors, fields = struct.unpack_from("<QQ", self._data, 8)
        place = 24
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            name, place = self._string(place)
            (kind,) = struct.unpack_from("<I", self._data, place)
            metadata[name], place = self._value(place + 4, kind, name)
        self.metadata: Mapping[str, Any] = metadata
        found = []
        for _ in range(tensors):
            name, place = self._string(place)
            (count,) = struct.unpack_from("<I", self._data, place)
            if not 0 < count <= _MOST_DIMENSIONS:
                raise InputError(f"{self.path}: tensor {name} has {count} dimensions; fetch the file again")
            shape = struct.unpack_from(f"<{count}Q", self._data, place + 4)
            kind, offset = struct.unpack_from("<IQ", self._data, place + 4 + 8 * count)
            place += 16 + 8 * count
            found.append((name, tuple(reversed(shape)), kind, offset))
        alignment = int(metadata.get("general.alignment", 32)) or 32
        begin = -(-place // alignment) * alignment
        self.tensors: Mapping[str, GgufTensor] = {
            name: self._checked(name, GgufTensor(shape, self._kind(name, kind), begin + offset))
            for name, shape, kind, offset in found
        }

    def _kind(self, name: str, number: int) -> GGMLQuantizationType:
        try:
            kind = GGMLQuantizationType(number)
            if kind not in PLAIN_TYPES:
                dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except (ValueError, KeyError, NotImplementedError):
            raise InputError(
                f"{self.path}: tensor {name} has the quantization {_kind_name(number)}, which the gguf "
                "package cannot decode; take a file with another quantization, such as Q8_0 or Q4_K_M, or "
                "update the package"
            ) from None
        return kind

    def _checked(self, name: str, tensor: GgufTensor) -> GgufTensor:
        values = GGML_QUANT_SIZES[tensor.kind][0]
        if not math.prod(tensor.shape) or tensor.shape[-1] % values:
            raise InputError(
                f"{self.path}: tensor {name} has the shape {tensor.shape}, whose rows are no whole blocks of "
                f"{values} values ({tensor.kind.name}); fetch the file again"
            )
        if tensor.offset + tensor.size > (size := self.path.stat().st_size):
            raise InputError(
                f"{self.path} is truncated: tensor {name} ends at byte {tensor.offset + tensor.size:,}, the "
                f"file at {size:,}; fetch it again"
            )
        return tensor

    def _string(self, place: int) -> tuple[str, int]:
        end = self._end_of_string(place)
        return self._data[place + 8 : end].decode(), end

    def _end_of_string(self, place: int) -> int:
        (length,) = struct.unpack_from("<Q", self._data, place)
        end = place + 8 + length
        if end > len(self._data):
            raise struct.error(f"a text of {length} bytes at byte {place}")
        return end

    def _value(self, place: int, kind: int, name: str) -> tuple[Any, int]:
        if kind == _STRING:
            return self._string(place)
        if kind in _CODES:
            code = f"<{_CODES[kind]}"
            return struct.unpack_from(code, self._data, place)[0], place + struct.calcsize(code)
        if kind != _ARRAY:
            raise InputError(f"{self.path}: {name} has a value of the unknown type {kind}; fetch it again")
        inner, count = struct.unpack_from("<IQ", self._data, place)
        place += 12
        if inner in _CODES:
            # The arrays of a vocabulary are long; numbers in numpy's form take a tenth of Python's.
            kinds = np.dtype(_CODES[inner]).newbyteorder("<")
            if place + count * kinds.itemsize > len(self._data):
                raise struct.error(f"{name} of {count} values")
            return np.frombuffer(self._data[place : place + count * kinds.itemsize], kinds), (
                place + count * kinds.itemsize
            )
        values = []
        for _ in range(count):
            if inner == _STRING and not self._texts:
                place = self._end_of_string(place)
                continue
            value, place = self._value(place, inner, name)
            values.append(value)
        return values, place

    def read_rows(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Read some rows of a tensor.

        Args:
            name: name of the tensor.
            first: number of the first row. A vector counts as one row.
            last: number of the row after the last one; None for all.

        Returns:
            The values [rows, columns] in their own type, decoded blocks in float32.

        Raises:
            InputError: the file has become shorter, or a value is NaN or infinite.
        """
        tensor = self.tensors[name]
        rows = math.prod(tensor.shape[:-1])
        last = rows if last is None else min(last, rows)
        self._handle.seek(tensor.offset + first * tensor.row_bytes)
        size = (last - first) * tensor.row_bytes
        raw = bytearray(size)
        view, done = memoryview(raw), 0
        while done < size:
            count = self._handle.readinto(view[done:])
            if not count:
                raise InputError(f"{self.path} is truncated in tensor {name}; fetch it again")
            done += count
        if tensor.kind in PLAIN_TYPES:
            values = np.frombuffer(raw, numpy_dtype(PLAIN_TYPES[tensor.kind]))
        else:
            blocks = np.frombuffer(raw, np.uint8).reshape(last - first, tensor.row_bytes)
            values = dequantize(blocks, tensor.kind)
        if not np.isfinite(values).all():
            raise InputError(f"{self.path}: tensor {name} holds NaN or infinite values")
        return values.reshape(last - first, tensor.shape[-1])


class GgufModel:
    """A model in one GGUF file or in the parts of a split one."""

    def __init__(self, path: Path, *, texts: bool = True) -> None:
        """Open all parts.

        Args:
            path: the file, or any part of a split one.
            texts: see `GgufFile`.

        Raises:
            InputError: a part is missing or cannot be read.
        """
        self.path = path
        files = [GgufFile(part, texts=texts) for part in _parts(path)]
        self.files = files
        self.metadata = files[0].metadata
        self._places = {name: file for file in files for name in file.tensors}

    @property
    def names(self) -> list[str]:
        """The names of all tensors, in the order of the files."""
        return list(self._places)

    def tensor(self, name: str) -> GgufTensor:
        """Return where a tensor is stored."""
        return self._places[name].tensors[name]

    def has(self, name: str) -> bool:
        """Return whether there is such a tensor."""
        return name in self._places

    def read(self, name: str) -> np.ndarray:
        """Return a whole tensor in its shape; see `GgufFile.read_rows`."""
        return self._places[name].read_rows(name).reshape(self.tensor(name).shape)

    def read_parts(self, name: str, multiple: int = 1) -> Iterator[np.ndarray]:
        """Yield a tensor in parts of whole rows.

        Args:
            name: name of the tensor.
            multiple: the number of rows of each part is a multiple of it.
        """
        tensor = self.tensor(name)
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        step = max(1, CHUNK_VALUES // (columns * multiple)) * multiple
        for first in range(0, rows, step):
            yield self._places[name].read_rows(name, first, first + step)


def _parts(path: Path) -> list[Path]:
    """Return all files of a model, of which `path` is one."""
    parts = gguf_parts(path)
    if len(parts) == 1:
        return parts
    if missing := [part.name for part in parts if not part.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{path.parent}: the model has {len(parts)} parts, and {missing[0]}{more} is missing; fetch all "
            "parts into "
            "this folder"
        )
    return parts


def _kind_name(number: int) -> str:
    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return f"number {number}"
