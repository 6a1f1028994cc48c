"""Reading of a spec from a JSON file, with errors that name the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from jora_core.base.error_messages import describe_validation_error
from jora_core.base.errors import InputError
from jora_core.base.secrets import expand_references

AnySpec = TypeVar("AnySpec", bound=BaseModel)


def read_spec(path: Path, model: type[AnySpec]) -> AnySpec:
    """Read and check one spec file.

    Args:
        path: the JSON file.
        model: class of the spec.

    Raises:
        InputError: no such file, broken JSON, unknown key (with the nearest known one), wrong type or value.
    """
    # One line for the user in each case: `from None` drops the chain of errors that would repeat it.
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as err:
        raise InputError(f"cannot read spec {path}: {err.strerror or err}") from None
    except UnicodeDecodeError as err:
        raise InputError(f"spec {path} is not UTF-8 text: {err.reason} at byte {err.start}") from None
    try:
        data = expand_references(json.loads(text))
    except json.JSONDecodeError as err:
        raise InputError(f"spec {path}, line {err.lineno}: broken JSON ({err.msg})") from None
    try:
        # Not `model_validate_json`: broken JSON is reported by line, and a wrong value by its field.
        return model.model_validate(data)
    except ValidationError as err:
        raise InputError(f"spec {path}: {describe_validation_error(err, model)}") from None
