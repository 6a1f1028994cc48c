"""The run form of a deployment: a JSON schema that fits one screen and checks the changes at their field.

Prefect's UI draws the form from the schema and lets the server check each value against it, before the run
is submitted. The messages of the check are those of JSON Schema. `const` in an `else` branch gives a message
with our own words: `'seed=<a whole number>' was expected`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

Schema = dict[str, Any]

KEY = r"[\w-]+(\.[\w-]+)*"
# Values in YAML. A quoted number is text, so quotes are part of no number.
_INTEGER = r"[-+]?[0-9][0-9_]*"
_NUMBER = r"[-+]?([0-9][0-9_]*)?\.?[0-9]+\.?([eE][-+]?[0-9]+)?"
_EMPTY = r"(null|~|)"
# A password or token of a URL that does not begin with `$`, as a reference does: the same rule as that of
# `jora_core.base.secrets`, in the regular expressions of JSON Schema.
_CREDENTIALS = (
    r"://([^\s/@:]*:[^\s/@$][^\s/@]*|[^\s/@:$][^\s/@:]*)@"
    r"|://\S*[?&]([\w.-]*([Tt]oken|[Ss]ignature|[Ss]ecret|[Pp]assw|[Cc]redential|[Aa][Pp][Ii]_?[Kk]ey|[Aa]uth)"
    r"[\w.-]*|sig|key|pwd)=[^\s&#$]"
)
NO_CREDENTIALS = "${NAME} in place of a password or token, with a variable of that name where jora serve runs"
EXPECTED = "key.path=value with a key of the configuration, such as seed=1"
# Placeholders in the messages, by the type of a field.
_TYPES: Mapping[Any, tuple[str, str]] = {
    bool: ("true|false", "true or false"),
    int: (_INTEGER, "a whole number"),
    float: (_NUMBER, "a number"),
}


def shown_properties(properties: Mapping[str, Schema], names: Sequence[str]) -> dict[str, Schema]:
    """Return the properties of a form in the given order, without those that the form does not show.

    Args:
        properties: properties of all parameters of the flow.
        names: names of the parameters to show.
    """
    return {name: {**properties[name], "position": place} for place, name in enumerate(names)}


def chosen_from(schema: Schema, values: Sequence[str]) -> Schema:
    """Return the schema of a field that offers a list of values to choose from.

    Args:
        schema: schema of the field, of which title, description and position are kept.
        values: the values to choose from.
    """
    kept = {name: schema[name] for name in ("title", "description", "position") if name in schema}
    return {**kept, "type": "string", "enum": list(values)}


def changes_schema(schema: Schema, model: type[BaseModel], aliases: Mapping[str, Sequence[str]]) -> Schema:
    """Return the schema of a list of changes like `seed=1`, with a message for each kind of mistake.

    Args:
        schema: schema of the field, of which title, description and position are kept.
        model: schema of the configuration, whose keys may be changed.
        aliases: names of list items by the key of the list, such as the stages of `phases`.
    """
    kept = {name: schema[name] for name in ("title", "description", "position") if name in schema}
    # The schedule decides when `jora serve` starts a run. A change of one run would do nothing.
    fields = [entry for entry in _fields(model, "", aliases) if not entry[0].startswith("schedule")]
    keys = "|".join(pattern for pattern, _, _ in fields)
    checks = [
        {
            "if": {"pattern": rf"^\s*({pattern})\s*="},
            "then": {
                "if": {"pattern": rf"^[^=]*=\s*({value})\s*(#.*)?$"},
                "then": True,
                "else": {"const": f"{_readable(pattern)}=<{words}>"},
            },
        }
        for pattern, value, words in fields
        if words
    ]
    checks.append({"if": {"pattern": _CREDENTIALS}, "then": {"const": NO_CREDENTIALS}})
    item = {
        "type": "string",
        "if": {"pattern": rf"^\s*({keys})\s*="},
        "then": {"allOf": checks},
        "else": {"const": EXPECTED},
    }
    return {**kept, "type": "array", "items": item}


def _fields(
    model: type[BaseModel], prefix: str, aliases: Mapping[str, Sequence[str]]
) -> list[tuple[str, str, str]]:
    """Return (pattern of the key, pattern of the value, expected value in words) of all fields.

    The last two are empty for values that a pattern cannot check, such as text and sections.
    """
    found: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{re.escape(name)}"
        value, words = _value_pattern(field.annotation)
        found.append((key, value, words))
        nested, in_list = _nested(field.annotation)
        if nested is None:
            if _is_open(field.annotation):
                # A mapping or a list with free keys, such as weights by leg.
                found.append((rf"{key}\.{KEY}", "", ""))
            continue
        if in_list:
            names = "|".join(["[0-9]+", *map(re.escape, aliases.get(name, ()))])
            found.append((rf"{key}\.({names})", "", ""))
            key = rf"{key}\.({names})"
        found += _fields(nested, rf"{key}\.", aliases)
    return found


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the model inside of a field's type, and whether the field is a list of such models."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for argument in get_args(annotation):
        model, in_list = _nested(argument)
        if model is not None:
            return model, in_list or get_origin(annotation) in (list, tuple)
    return None, False


def _is_open(annotation: Any) -> bool:
    if get_origin(annotation) in (dict, list, tuple) or annotation in (dict, list, tuple, Any):
        return True
    return any(_is_open(argument) for argument in get_args(annotation))


def _value_pattern(annotation: Any) -> tuple[str, str]:
    """Return a pattern of valid values and the expected value in words; empty texts for any value."""
    if annotation is type(None):
        return _EMPTY, "nothing"
    if annotation in _TYPES:
        return _TYPES[annotation]
    if get_origin(annotation) is Literal:
        values = [
            str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(annotation)
        ]
        plain = "|".join(map(re.escape, values))
        return rf"['\"]?({plain})['\"]?", f"one of {', '.join(values)}"
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [_value_pattern(argument) for argument in get_args(annotation)]
        if not all(words for _, words in parts):
            return "", ""
        return "|".join(f"({pattern})" for pattern, _ in parts), " or ".join(words for _, words in parts)
    return "", ""


def _readable(pattern: str) -> str:
    """Return the key of a message: `phases.*.max_steps` for a pattern with alternatives."""
    plain = re.sub(r"\(\[0-9\]\+[^)]*\)", "*", pattern)
    return plain.replace("\\.", ".").replace("\\", "")
