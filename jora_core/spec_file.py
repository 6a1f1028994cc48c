"""Reading an order from its JSON file, with errors that name the field; imports no JAX."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from jora_core.errors import InputError

AnySpec = TypeVar("AnySpec", bound=BaseModel)


def read_spec(path: Path, model: type[AnySpec]) -> AnySpec:
    """Read and check one spec file.

    Raises:
        InputError: no such file, broken JSON, unknown key (with the nearest known one), wrong type or value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as err:
        raise InputError(f"cannot read spec {path}: {err.strerror or err}") from None
    except UnicodeDecodeError as err:
        raise InputError(f"spec {path} is not UTF-8 text: {err.reason} at byte {err.start}") from None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as err:
        raise InputError(f"spec {path}, line {err.lineno}: broken JSON ({err.msg})") from None
    try:
        return model.model_validate(data)
    except ValidationError as err:
        raise InputError(f"spec {path}: {describe_validation_error(err, model)}") from None


def describe_validation_error(err: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first problem of a pydantic error: the field, and for a typo the nearest key."""
    first = err.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the spec"
    more = f" (and {err.error_count() - 1} more)" if err.error_count() > 1 else ""
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}{more}"
    known = _fields_at(model, first["loc"][:-1])
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
    return f"{where}: unknown key; {hint}{more}"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names of the nested model that stands at `path` below `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
