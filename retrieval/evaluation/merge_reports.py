"""Reports that are gathered in parts: written as JSON, read again, and joined in order.

It works on any dataclass of numbers, texts, lists, sets, dictionaries, counters and such dataclasses, so
that a report may grow a field without a line here. Numbers and counters are added, lists concatenated, sets
united, dictionaries joined key by key; texts, booleans and None must agree.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Part = TypeVar("Part")


def join(into: Part, other: Part) -> Part:
    """`other` added to `into`, which is changed where its type allows and returned.

    Raises:
        TypeError: the two are of different kinds, or of a kind that cannot be joined.
        ValueError: two texts or booleans differ.
    """
    if type(into) is not type(other):
        raise TypeError(f"cannot join {type(into).__name__} and {type(other).__name__}")
    if is_dataclass(into) and not isinstance(into, type):
        for field in fields(into):
            old = getattr(into, field.name)
            new = join(old, getattr(other, field.name))
            if new is not old:
                setattr(into, field.name, new)
        return into
    return _join_value(into, other)


def _join_value(into: Any, other: Any) -> Any:
    if isinstance(into, Counter):
        into.update(other)
    elif isinstance(into, dict):
        for key, value in other.items():
            into[key] = join(into[key], value) if key in into else value
    elif isinstance(into, set):
        into |= other
    elif isinstance(into, list):
        into.extend(other)
    elif isinstance(into, int | float) and not isinstance(into, bool):
        return into + other
    elif into is None or isinstance(into, str | bool):
        if into != other:
            raise ValueError(f"cannot join {into!r} and {other!r}")
    else:
        raise TypeError(f"cannot join values of {type(into).__name__}")
    return into


def dump(part: Any) -> bytes:
    """JSON of a dataclass as above."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(part)).dump_json(part)


def load(kind: type[Part], data: bytes) -> Part:
    """The dataclass that `dump` wrote."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(data)
