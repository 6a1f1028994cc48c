"""Reading of slices of a safetensors file, with only the slice in memory.

The safetensors library maps the file. Pages of a mapped file count as resident memory once they are read, and
a slice of columns reads all pages of its tensor. Here each contiguous run of a slice is read with one system
call instead. Format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.base.errors import InputError

# The bits of each type's exponent: all set in NaN and infinity, and in nothing else.
_EXPONENTS = {
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
}
FLOATS = tuple(_EXPONENTS)
FLOAT_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OTHER_NAMES = {"BOOL": "bool"} | {
    f"{letter}{bits}": f"{kind}{bits}"
    for letter, kind in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class TensorEntry:
    """Header entry of one tensor: type (numpy's name for floats), shape, and offset of its first byte."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class TensorFile:
    """An open safetensors file, which several threads may read."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its header.

        Raises:
            InputError: the file is missing, unreadable, truncated, or in another format.
        """
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(path, "numpy"):  # the library checks the header against the file's size
                pass
            # Unbuffered, because slices are read from the file descriptor and bypass any buffer.
            self._handle = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise InputError(f"weights file {path} does not exist") from None
        except OSError as err:
            raise InputError(f"cannot read {path}: {err.strerror or err}") from None
        except SafetensorError as err:
            raise InputError(
                f"{path} is truncated or not a safetensors file ({err}); fetch it again"
            ) from None
        # Header: its length in 8 bytes, then JSON; offsets in it count from its end.
        size = int.from_bytes(self._handle.read(8), "little")
        header: dict[str, Any] = json.loads(self._handle.read(size))
        header.pop("__metadata__", None)
        self.tensors = {
            name: TensorEntry(
                # Other types keep the file's name for them (I64, F8_E4M3), which `TensorStore.check` refuses.
                str(FLOAT_NAMES.get(fields["dtype"], fields["dtype"])),
                tuple(fields["shape"]),
                8 + size + fields["data_offsets"][0],
            )
            for name, fields in header.items()
        }

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Read a tensor or a part of it.

        Args:
            name: name of the tensor.
            index: one slice of step 1 for each dimension; the whole tensor if None.

        Raises:
            InputError: the part has NaN or infinity, or the file has become shorter.
        """
        entry = self.tensors[name]
        bounds = [
            s.indices(n)[:2]
            for s, n in zip(index or (slice(None),) * len(entry.shape), entry.shape, strict=True)
        ]
        out = np.empty([stop - start for start, stop in bounds], numpy_dtype(entry.dtype))
        # As bytes: numpy's bfloat16 is an extension type, which no memoryview can be made of.
        target = memoryview(out.reshape(-1).view(np.uint8).data)
        for run, offset in _runs(entry, bounds, out.itemsize):
            self._fill(target[:run], offset)
            target = target[run:]
        if entry.dtype in _EXPONENTS and not _finite(out, _EXPONENTS[entry.dtype]):
            raise InputError(f"{self.path}: tensor {name} holds NaN or infinite values")
        return out

    def _fill(self, target: memoryview, offset: int) -> None:
        while target:
            # The offset is an argument, so threads share the file without a lock. A call may return fewer
            # bytes than it is asked for: Linux gives at most 2 GiB.
            count = os.preadv(self._handle.fileno(), [target], offset)
            if not count:
                raise InputError(f"{self.path} is truncated at byte {offset}; fetch it again")
            target, offset = target[count:], offset + count


def _runs(entry: TensorEntry, bounds: list[tuple[int, int]], itemsize: int) -> Iterator[tuple[int, int]]:
    """Yield the length and file offset in bytes of each contiguous run of a part, in the part's order."""
    shape = entry.shape
    whole = len(shape)  # axes from here on are taken whole
    # Axes that are taken whole join the run: some rows of a matrix are one read, some columns one a row.
    while whole and bounds[whole - 1] == (0, shape[whole - 1]):
        whole -= 1
    strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    split = max(whole - 1, 0)
    first, last = bounds[split] if shape else (0, 1)
    stride = strides[split] if shape else itemsize
    for lead in itertools.product(*(range(*pair) for pair in bounds[:split])):
        start = sum(i * s for i, s in zip(lead, strides, strict=False))
        yield (last - first) * stride, entry.offset + start + first * stride


def numpy_dtype(name: str) -> np.dtype:
    """Return the numpy type of a type name, bfloat16 included."""
    import jax.numpy as jnp  # knows bfloat16

    return jnp.dtype(_OTHER_NAMES.get(name, name))


def _finite(value: np.ndarray, exponent: int) -> bool:
    """Return whether no element is NaN or infinite: these have all bits of the exponent set.

    The check runs in pieces that fit into a cache, without a mask as long as the whole tensor.
    """
    bits = value.reshape(-1).view(f"u{value.itemsize}")
    mask = bits.dtype.type(exponent)
    return all((bits[i : i + 65536] & mask).max() != mask for i in range(0, bits.size, 65536))
