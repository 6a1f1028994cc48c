"""Rotary position settings of a ``config.json``, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jora_core.architecture.families import Family
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_number, read_object

# The fields that each kind reads, beside its name and base.
_KIND_FIELDS = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": (
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
        "longrope": (
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "short_factor",
            "long_factor",
        ),
    }
)
ROPE_KINDS = tuple(_KIND_FIELDS)
# Kinds whose frequencies depend on the length of the row.
_BY_LENGTH = ("dynamic", "longrope")
# The first files of Phi-3 128K name longrope so.
_OLD_NAMES = {"su": "longrope"}
# Fields that files also have where their kind ignores them, as transformers does.
_COMMON_FIELDS = frozenset(
    {
        "rope_type",
        # The spelling of older releases, still in many published files.
        "type",
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
    }
)


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies, for rows that are longer than in pre-training.

    Attributes:
        kind: "linear" (all positions divided by the factor, arXiv:2306.15595), "llama3" (only low frequencies
            are divided, with a ramp between two thresholds, arXiv:2407.21783), "yarn" (a ramp over the
            dimensions, arXiv:2309.00071), "dynamic" (the base grows with the row) or "longrope" (one divisor
            for each frequency, arXiv:2402.13753).
        factor: divisor of the positions or frequencies.
        low_freq_factor, high_freq_factor, original_max_positions: the thresholds of llama3. A frequency with
            fewer than `low_freq_factor` turns over the original positions is divided. A frequency with more
            than `high_freq_factor` turns is kept. In dynamic and longrope, rows beyond the original positions
            are scaled otherwise.
        attention_factor: factor on cosines and sines (yarn, longrope).
        beta_fast, beta_slow, truncate: turns at the ends of yarn's ramp, and whether the ends are rounded
            to whole dimensions.
        short_factors, long_factors: longrope's divisors of short and of long rows, one for each frequency.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.original_max_positions < 1:
            raise InputError(
                f"model config: rope scaling needs positive factor and original_max_position_embeddings, "
                f"found {self.factor} and {self.original_max_positions}"
            )
        if self.kind == "dynamic" and self.factor < 1:
            raise InputError(
                f"model config: rope type dynamic needs a factor of at least 1, found {self.factor}"
            )
        if self.high_freq_factor <= self.low_freq_factor:
            raise InputError(
                f"model config: rope scaling needs low_freq_factor ({self.low_freq_factor}) below "
                f"high_freq_factor ({self.high_freq_factor})"
            )
        if self.attention_factor <= 0:
            raise InputError(
                f"model config: rope scaling needs a positive attention_factor, found {self.attention_factor}"
            )
        if self.beta_slow <= 0 or self.beta_fast < self.beta_slow:
            raise InputError(
                f"model config: rope scaling needs beta_fast ({self.beta_fast}) from beta_slow "
                f"({self.beta_slow}) on, both positive"
            )

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on the length of the row."""
        return self.kind in _BY_LENGTH


@dataclass(frozen=True)
class Rope:
    """The rotary settings of a model.

    Attributes:
        theta: rotary base.
        scaling: scaling of the frequencies, None for none.
        local_theta: rotary base of layers with a window, None where all layers have one base.
        partial: share of each head that is rotated.
    """

    theta: float
    scaling: RopeScaling | None
    local_theta: float | None
    partial: float


def read_rope(where: str, data: dict[str, Any], family: Family, head_dim: int) -> Rope:
    """Return the rotary settings.

    transformers 4 wrote rope_theta, rope_scaling and rope_local_base_freq; 5 writes one object
    rope_parameters, for Gemma 3 with one object inside for each kind of layer.

    Args:
        where: name of the file, for error messages.
        data: the fields of the ``config.json``, completed with the family's defaults.
        family: family of the model. `Family.local_rope` says whether layers with a window have another base.
        head_dim: width of a head.

    Raises:
        InputError: a kind of scaling that is not supported, or a field that is missing or unknown.
    """
    scaling, parameters = (_object(where, data, name) for name in ("rope_scaling", "rope_parameters"))
    if not family.local_rope:
        rope = _merged(where, data, scaling, parameters)
        partial = _partial(where, data, rope, family, head_dim)
        width = int(head_dim * partial)
        return Rope(_rope_theta(where, data, rope), _rope_scaling(where, data, rope, width), None, partial)
    if unknown := sorted(set(parameters) - {"full_attention", "sliding_attention"}):
        raise InputError(
            f"{where}: rope_parameters.{unknown[0]} is not supported for {family.title} models; "
            "expected full_attention and sliding_attention"
        )
    # Only layers without a window are scaled, because a window is shorter than the rows of pre-training.
    rope = {**_object(where, parameters, "full_attention"), **scaling}
    local = _object(where, parameters, "sliding_attention")
    for each in (rope, local):
        _partial(where, data, each, family, head_dim)
    if _rope_scaling(where, data, local, head_dim) is not None:
        raise InputError(
            f"{where}: rope_parameters.sliding_attention has rope type {_rope_kind(local)}; expected default"
        )
    local_theta = _rope_theta(where, {"rope_theta": data["rope_local_base_freq"]}, local)
    return Rope(_rope_theta(where, data, rope), _rope_scaling(where, data, rope, head_dim), local_theta, 1.0)


def _object(where: str, data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object without its null fields, which count as absent."""
    return {key: value for key, value in read_object(where, data, name).items() if value is not None}


def _merged(
    where: str, data: dict[str, Any], scaling: dict[str, Any], parameters: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of both objects. In a file with both, rope_scaling wins, as in transformers 5."""
    if not (scaling and parameters):
        return scaling or parameters
    # As text: a kind of a wrong type, such as a list, is refused later.
    kinds = {str(_rope_kind(each)) for each in (scaling, parameters) if {"rope_type", "type"} & each.keys()}
    named = (each.get("rope_theta") for each in (scaling, parameters, data))
    thetas = {theta for theta in named if isinstance(theta, int | float) and not isinstance(theta, bool)}
    # The default of a family says nothing about what the file wants.
    thetas -= {10000.0} if len(thetas) > 1 else set()
    for name, values in (("rope type", kinds), ("rope_theta", thetas)):
        if len(values) > 1:
            shown = " and ".join(sorted(map(str, values)))
            raise InputError(
                f"{where}: rope_scaling and rope_parameters name two values of {name}, {shown}; remove one"
            )
    return {**parameters, **scaling}


def _partial(where: str, data: dict[str, Any], rope: dict[str, Any], family: Family, head_dim: int) -> float:
    """Return the share of each head that is rotated."""
    known = "partial_rotary_factor" in family.defaults
    share = rope.get("partial_rotary_factor", data.get("partial_rotary_factor") if known else None)
    if share is None or share == 1:
        return 1.0
    share = float(read_number(where, {"partial_rotary_factor": share}, "partial_rotary_factor", float))
    if not known:
        raise InputError(
            f"{where}: partial_rotary_factor={share} is not supported for {family.title} models; expected 1"
        )
    width = int(head_dim * share)
    if not 0 < share < 1 or width < 2 or width % 2:
        raise InputError(
            f"{where}: partial_rotary_factor={share} gives {width} of {head_dim} dimensions of a head; "
            "expected an even number of them"
        )
    return share


def _rope_theta(where: str, data: dict[str, Any], rope: dict[str, Any]) -> float:
    # transformers 5 writes the base into the rope object, 4 beside it; the object wins.
    return float(read_number(where, {**data, **rope}, "rope_theta", float))


def _rope_kind(rope: dict[str, Any]) -> Any:
    kind = rope.get("rope_type", rope.get("type", "default"))
    return _OLD_NAMES.get(kind, kind) if isinstance(kind, str) else kind


def _rope_scaling(where: str, data: dict[str, Any], rope: dict[str, Any], width: int) -> RopeScaling | None:
    """Return the scaling of frequencies over `width` dimensions of a head."""
    kind = _rope_kind(rope)
    # Phi-3 renamed its scaling: early files call it yarn.
    if kind == "yarn" and "short_factor" in rope:
        kind = "longrope"
    # The kind is checked first. Otherwise the error for another kind would name unknown fields.
    if not isinstance(kind, str) or kind not in _KIND_FIELDS:
        raise InputError(
            f"{where}: rope type {json.dumps(kind)} is not supported; known are {', '.join(ROPE_KINDS)}"
        )
    if unknown := sorted(set(rope) - _COMMON_FIELDS - set(_KIND_FIELDS[kind])):
        raise InputError(f"{where}: field {unknown[0]} of rope type {kind} is not supported; remove it")
    # "default" with a factor is not stretched: transformers ignores the factor as well.
    if kind == "default":
        return None
    longest = read_number(where, data, "max_position_embeddings", int)
    if kind in ("linear", "dynamic"):
        factor = float(read_number(where, rope, "factor", float))
        return (
            RopeScaling(kind, factor)
            if kind == "linear"
            else RopeScaling(kind, factor, original_max_positions=longest)
        )
    # Beside the object in some files, which transformers prefers.
    original = read_number(where, {**rope, **_top(data)}, "original_max_position_embeddings", int, longest)
    if kind == "llama3":
        return RopeScaling(
            kind,
            float(read_number(where, rope, "factor", float)),
            float(read_number(where, rope, "low_freq_factor", float)),
            float(read_number(where, rope, "high_freq_factor", float)),
            original,
        )
    factor = float(read_number(where, rope, "factor", float, longest / max(original, 1)))
    given = rope.get("attention_factor")
    attention = None if given is None else float(read_number(where, rope, "attention_factor", float))
    if kind == "longrope":
        default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
        return RopeScaling(
            kind,
            factor,
            original_max_positions=original,
            attention_factor=default if attention is None else attention,
            short_factors=_divisors(where, rope, "short_factor", width // 2),
            long_factors=_divisors(where, rope, "long_factor", width // 2),
        )
    mscale, all_dim = (
        float(read_number(where, rope, name, float, 0)) for name in ("mscale", "mscale_all_dim")
    )
    both = mscale and all_dim
    default = _magnitude(factor, mscale) / _magnitude(factor, all_dim) if both else _magnitude(factor)
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise InputError(f"{where}: truncate must be true or false, found {json.dumps(truncate)}")
    return RopeScaling(
        kind,
        factor,
        original_max_positions=original,
        attention_factor=default if attention is None else attention,
        # As in transformers, 0 means the default.
        beta_fast=float(read_number(where, rope, "beta_fast", float, 32) or 32),
        beta_slow=float(read_number(where, rope, "beta_slow", float, 1) or 1),
        truncate=truncate,
    )


def _top(data: dict[str, Any]) -> dict[str, Any]:
    name = "original_max_position_embeddings"
    return {} if data.get(name) is None else {name: data[name]}


def _magnitude(factor: float, weight: float = 1.0) -> float:
    """Return yarn's factor on cosines and sines, from a fit to models of several lengths."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _divisors(where: str, rope: dict[str, Any], name: str, count: int) -> tuple[float, ...]:
    values = rope.get(name)
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)}" if isinstance(values, list) else json.dumps(values)[:40]
        raise InputError(f"{where}: {name} must list {count} numbers, found {found}")
    numbers = tuple(float(read_number(where, {name: value}, name, float)) for value in values)
    if min(numbers) <= 0:
        raise InputError(f"{where}: {name} must list positive numbers, found {min(numbers)}")
    return numbers


def write_rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """Return the object rope_scaling of a ``config.json``."""
    values: dict[str, Any] = {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
        "attention_factor": scaling.attention_factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
        "short_factor": list(scaling.short_factors),
        "long_factor": list(scaling.long_factors),
    }
    # mscale and mscale_all_dim are already in the attention factor.
    names = [name for name in _KIND_FIELDS[scaling.kind] if name in values]
    return {"rope_type": scaling.kind, **{name: values[name] for name in names}}
