"""Reading of JSON configurations with checked field types."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError

_LFS_POINTER = b"version https://git-lfs"


def refuse_lfs_pointer(path: Path, head: bytes) -> None:
    """Refuse the small file that Git leaves in the place of a large one.

    Args:
        path: the file.
        head: its first bytes.

    Raises:
        InputError: the file is such a pointer.
    """
    if head.startswith(_LFS_POINTER):
        raise InputError(
            f"{path} is a Git-LFS pointer and not the file itself; run `git lfs pull` in its folder, "
            "or download the file"
        )


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of JSON that has these fields, for `object_pairs_hook`.

    Python's parser keeps the last value of a repeated name, silently. A name may be repeated with the same
    value only.

    Raises:
        ValueError: a name has two values.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise ValueError(repeated_field(name))
    return found


def repeated_field(name: str) -> str:
    """Return what is wrong with an object that has a field of this name twice."""
    return f"field {name!r:.60} is twice in one object, with different values; remove one of them"


def read_json_object(path: Path, owner: str) -> dict[str, Any]:
    """Read a JSON file that must hold an object. A byte order mark at its start is allowed.

    Args:
        path: the file.
        owner: the kind of folder that holds the file, for the error message.

    Raises:
        InputError: missing or unreadable file, broken JSON, not an object.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{owner} has no {path.name}") from None
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror or err}") from None
    refuse_lfs_pointer(path, raw)
    try:
        # utf-8-sig: editors on Windows write a byte order mark, which a JSON parser refuses.
        data = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique_fields)
    # ValueError: bytes that are not UTF-8, broken JSON, a number of too many digits, a field with two values.
    except (ValueError, RecursionError) as err:
        raise InputError(f"{path} is not valid JSON: {err}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, found {type(data).__name__}")
    return data


def read_object(where: str, data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object field of the config. A missing or null field gives an empty object.

    Args:
        where: name of the config, for the error message.
        data: the config's fields.
        name: name of the field.

    Raises:
        InputError: the value is no object.
    """
    # Hugging Face writes null for a part that a model does not have, such as "rope_scaling": null.
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: {name} must be an object, found {type(value).__name__}")
    return value


def read_number(where: str, data: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """Return a number field of the config. An integer is accepted where a float is expected.

    Args:
        where: name of the config, for the error message.
        data: the config's fields.
        name: name of the field.
        kind: int or float.
        default: value of a missing or null field; None makes the field required.

    Raises:
        InputError: the value is missing or no such number.
    """
    value = data.get(name)
    # Null counts as missing: Hugging Face writes it for what a model does not set, such as "sliding_window":
    # null.
    value = default if value is None else value
    if value is None:
        raise InputError(f"{where}: field {name} is missing")
    # A bool is an int in Python: without the first test, "num_hidden_layers": true would count as 1. An
    # integer may stand for a float, since most files write "rope_theta": 10000.
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise InputError(f"{where}: {name} must be {kind.__name__}, found {json.dumps(value)}")
    # Python reads NaN and Infinity in JSON, and 1e999 as infinity. An integer may be too large for a float.
    if kind is float and not _is_finite(value):
        raise InputError(f"{where}: {name} must be a finite number, found {str(value)[:40]}")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read_optional(where: str, data: dict[str, Any], name: str, kind: type) -> Any:
    """Return a number field of the config, None where the field is missing or null.

    Args:
        where: name of the config, for the error message.
        data: the config's fields.
        name: name of the field.
        kind: int or float.

    Raises:
        InputError: the value is no such number.
    """
    return None if data.get(name) is None else kind(read_number(where, data, name, kind))


def read_flag(where: str, data: dict[str, Any], name: str) -> bool:
    """Return a true-or-false field of the config.

    Args:
        where: name of the config, for the error message.
        data: the config's fields.
        name: name of the field.

    Raises:
        InputError: the value is neither true nor false.
    """
    # Never missing: the caller fills in the default of the model family first.
    value = data[name]
    if not isinstance(value, bool):
        raise InputError(f"{where}: {name} must be true or false, found {json.dumps(value)}")
    return value
