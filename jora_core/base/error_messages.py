"""Description of a Pydantic error in one line that names the field, in words of our own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys",
    "model": "a mapping of keys",
    "mapping": "a mapping of keys",
    "date": "a date",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_LEAST_RATIO = 0.8  # of similarity, from which a known key is a likely spelling of an unknown key
_LEAST_LETTERS = 4  # of a key that one other letter may turn into another key


def describe_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line that describes an error's first problem: its field, and for a typo the nearest key."""
    place, message = first_problem(error, model)
    return f"{'.'.join(place) or 'the spec'}: {message}"


def first_problem(error: ValidationError, model: type[BaseModel]) -> tuple[tuple[str, ...], str]:
    """Return the place of an error's first problem as keys, and one line about the problem.

    A value that fits no branch of a union has one problem for each branch. They become one.
    """
    problems: dict[tuple[str, ...], list[Any]] = {}
    # Unknown keys first: a misspelt key is most often the reason why another key is missing.
    for item in sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden"):
        problems.setdefault(place_of(item["loc"], model), []).append(item)
    place, items = next(iter(problems.items()))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return place, f"{_problem(place, items, model)}{more}"


def _problem(place: tuple[str, ...], items: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> str:
    first = items[0]
    match first["type"]:
        case "extra_forbidden":
            known = known_keys(model, place[:-1])
            near = near_name(place[-1], known)
            return f"unknown key; {f'did you mean {near}?' if near else known_keys_text(known)}"
        case "missing":
            return "this key is missing"
        case "value_error":
            # Pydantic puts "Value error, " before the messages of our own validators.
            return first["msg"].removeprefix("Value error, ")
    phrases = list(dict.fromkeys(_expected(item) for item in items if item["type"] != "value_error"))
    return f"expected {' or '.join(phrases)}, got {short(first['input'])}"


def _expected(item: Mapping[str, Any]) -> str:
    """Return what was expected in place of a wrong value, such as `a whole number`."""
    kind, context = item["type"], item.get("ctx", {})
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{words} {context[name]:g}"
    match kind:
        case "literal_error":
            return context["expected"]
        case "finite_number":
            return "a finite number"
        case "too_short" | "string_too_short":
            least = context.get("min_length", 1)
            what = "character" if kind.startswith("string") else "item"
            return f"at least {least} {what}{'' if least == 1 else 's'}"
        case "too_long" | "string_too_long":
            most = context.get("max_length", 1)
            what = "character" if kind.startswith("string") else "item"
            return f"at most {most} {what}{'' if most == 1 else 's'}"
        case "string_pattern_mismatch":
            return f"text like {context.get('pattern')}"
        case "invalid_key":
            return "keys that are text"
    # The types are `int_parsing`, `int_type`, `list_type`, …
    if named := _TYPES.get(kind.split("_")[0]):
        return named
    return item["msg"].removeprefix("Input should be ")


def place_of(location: Sequence[int | str], model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of an error's location, without the names of a union's branches.

    Args:
        location: `loc` of one problem. Pydantic adds names for a union's branches.
        model: the model that was validated.
    """
    kept: list[str] = []
    current: Any = model
    for part in location:
        models = _models_in(current)
        fields = models[0].model_fields if models else {}
        if isinstance(part, int):
            kept.append(str(part))
        elif part in fields:
            kept.append(part)
            current = fields[part].annotation
        # A key of a mapping, or an unknown key of a model.
        elif _has_keys(current) or (part == location[-1] and fields and not part.startswith("function-")):
            kept.append(part)
    return tuple(kept)


def known_keys(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Return the field names of the nested model at `location`, through lists and optional fields."""
    models = _models_in(field_annotation(model, location))
    return list(models[0].model_fields) if models else []


def field_annotation(model: type[BaseModel], location: Sequence[str]) -> Any:
    """Return the type of the field at `location`, through lists and optional fields; None for no field.

    A number, or the stage of a phase, names an item of a list, whose type is already found.
    """
    current: Any = model
    for part in location:
        models = _models_in(current)
        in_list = get_origin(current) is list and (not models or part not in models[0].model_fields)
        if part.isdigit() or not models or in_list:
            continue
        field = models[0].model_fields.get(part)
        current = field.annotation if field else None
    return current


def known_keys_text(known: Sequence[str]) -> str:
    """Return the list of known keys for an error about an unknown key."""
    return f"known keys are {', '.join(known)}" if known else "no key is known here"


def near_name(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that `name` is a likely misspelling of; None for an unrelated name."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=_LEAST_RATIO)
    if near:
        return near[0]
    # One wrong letter in a short name, such as `mash` for `mesh`, is below that ratio.
    if len(name) >= _LEAST_LETTERS:
        for other in known:
            pairs = zip(name, other, strict=False)
            if len(other) == len(name) and sum(one != two for one, two in pairs) == 1:
                return other
    return None


def short(value: Any) -> str:
    """Return a wrong value as text that fits into a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _has_keys(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return True
    return any(_has_keys(argument) for argument in get_args(annotation))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
