"""Join reports that are made in parts: each is written as JSON, read again, and added in order.

It works on any dataclass of numbers, texts, lists, sets, dictionaries, counters and such dataclasses, so a
report can have a new field without a change here. Numbers and counters are added, lists concatenated, sets
united, dictionaries joined key by key. Texts, booleans and None must be equal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Part = TypeVar("Part")


def join(into: Part, other: Part) -> Part:
    """Add `other` to `into`, and return `into`, which is changed if its type is mutable.

    Raises:
        TypeError: the two have different types, or a type that cannot be joined.
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
    """Return the JSON of a dataclass of these types."""
    # Pydantic restores sets, counters and nested dataclasses from the annotations, which plain JSON loses.
    from pydantic import TypeAdapter

    return TypeAdapter(type(part)).dump_json(part)


def load(kind: type[Part], data: bytes) -> Part:
    """Return the dataclass that `dump` wrote."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(data)
