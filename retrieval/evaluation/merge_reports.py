"""Join the partial reports of a build. Each part is written as JSON, read again, and added in order.

A report is a dataclass of numbers, texts, lists, sets, dictionaries, counters and nested dataclasses. So a
report can get a new field without a change here. Numbers and counters are added, lists concatenated, sets
united, dictionaries joined key by key. Texts, booleans and None must be equal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Part = TypeVar("Part")


def join(into: Part, other: Part) -> Part:
    """Add the report `other` to the report `into`, and return `into`.

    Mutable values of `into` are changed in place.

    Raises:
        TypeError: the reports have different types, or a type that cannot be joined.
        ValueError: two texts or booleans differ.
    """
    if type(into) is not type(other):
        raise TypeError(f"cannot join {type(into).__name__} and {type(other).__name__}")
    # `is_dataclass` is also true for the class itself.
    if is_dataclass(into) and not isinstance(into, type):
        for field in fields(into):
            old = getattr(into, field.name)
            new = join(old, getattr(other, field.name))
            # Mutable values were changed in place, and a frozen dataclass (`Tally`) must not be assigned to.
            if new is not old:
                setattr(into, field.name, new)
        return into
    return _join_value(into, other)


def _join_value(into: Any, other: Any) -> Any:
    # Before dict: a Counter is one, but adds its values.
    if isinstance(into, Counter):
        into.update(other)
    elif isinstance(into, dict):
        for key, value in other.items():
            into[key] = join(into[key], value) if key in into else value
    elif isinstance(into, set):
        into |= other
    elif isinstance(into, list):
        into.extend(other)
    elif isinstance(into, int | float) and not isinstance(into, bool):  # in Python, a bool is an int
        return into + other
    elif into is None or isinstance(into, str | bool):
        if into != other:
            raise ValueError(f"cannot join {into!r} and {other!r}")
    else:
        raise TypeError(f"cannot join values of {type(into).__name__}")
    return into


def dump(part: Any) -> bytes:
    """Return a report as JSON."""
    # Pydantic restores sets, counters and nested dataclasses from the annotations, which plain JSON loses.
    from pydantic import TypeAdapter

    return TypeAdapter(type(part)).dump_json(part)


def load(kind: type[Part], data: bytes) -> Part:
    """Restore a report from the JSON that `dump` returned."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(data)
