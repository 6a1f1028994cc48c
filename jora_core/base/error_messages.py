"""Description of a Pydantic error in one line that names the field."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ValidationError


def describe_validation_error(err: ValidationError, model: type[BaseModel]) -> str:
    """Return one line that describes an error's first problem: its field, and for a typo the nearest key."""
    first = err.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the spec"
    more = f" (and {err.error_count() - 1} more)" if err.error_count() > 1 else ""
    # Pydantic puts "Value error, " before the messages of our own validators.
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}{more}"
    known = _fields_at(model, first["loc"][:-1])
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
    return f"{where}: unknown key; {hint}{more}"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the nested model at `path` below `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        # A list on the way, as in `phases.0.lora`, names no single model, so no key can be suggested.
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
