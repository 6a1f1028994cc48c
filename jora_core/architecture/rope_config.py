"""Rotary position settings of a ``config.json``, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jora_core.architecture.families import Family
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_number, read_object

ROPE_KINDS = ("default", "linear", "llama3")
_ROPE_FIELDS = {
    "rope_type",
    # The spelling of older releases, still in many published files.
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
}


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies, for rows that are longer than in pre-training.

    Attributes:
        kind: "linear" (all positions divided by the factor, arXiv:2306.15595) or "llama3" (only low
            frequencies are divided, with a ramp between two thresholds, arXiv:2407.21783).
        factor: divisor of the positions or frequencies.
        low_freq_factor, high_freq_factor, original_max_positions: the thresholds of llama3. A frequency with
            fewer than `low_freq_factor` turns over the original positions is divided. A frequency with more
            than `high_freq_factor` turns is kept.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.original_max_positions < 1:
            raise InputError(
                f"model config: rope scaling needs positive factor and original_max_position_embeddings, "
                f"found {self.factor} and {self.original_max_positions}"
            )
        if self.high_freq_factor <= self.low_freq_factor:
            raise InputError(
                f"model config: rope scaling needs low_freq_factor ({self.low_freq_factor}) below "
                f"high_freq_factor ({self.high_freq_factor})"
            )


def read_rope(
    where: str, data: dict[str, Any], family: Family
) -> tuple[float, RopeScaling | None, float | None]:
    """Return the rotary base, its scaling, and the rotary base of layers with a window.

    The last is None in families whose layers all have one rotary base.

    transformers 4 wrote rope_theta, rope_scaling and rope_local_base_freq; 5 writes one object
    rope_parameters, for Gemma 3 with one object inside for each kind of layer.

    Args:
        where: name of the file, for error messages.
        data: the fields of the ``config.json``, completed with the family's defaults.
        family: family of the model. `Family.local_rope` says whether layers with a window have another base.

    Raises:
        InputError: a kind of scaling that is not supported, or a field that is missing or unknown.
    """
    scaling = read_object(where, data, "rope_scaling")
    parameters = read_object(where, data, "rope_parameters")
    if not family.local_rope:
        # Where a file has both, transformers 5 lets rope_scaling win as well.
        rope = scaling or parameters
        return _rope_theta(where, data, rope), _rope_scaling(where, data, rope), None
    if unknown := sorted(set(parameters) - {"full_attention", "sliding_attention"}):
        raise InputError(
            f"{where}: rope_parameters.{unknown[0]} is not supported for {family.title} models; "
            "expected full_attention and sliding_attention"
        )
    # Only layers without a window are scaled, because a window is shorter than the rows of pre-training.
    rope = {**read_object(where, parameters, "full_attention"), **scaling}
    local = read_object(where, parameters, "sliding_attention")
    if _rope_scaling(where, data, local) is not None:
        raise InputError(
            f"{where}: rope_parameters.sliding_attention has rope type {_rope_kind(local)}; expected default"
        )
    local_theta = _rope_theta(where, {"rope_theta": data["rope_local_base_freq"]}, local)
    return _rope_theta(where, data, rope), _rope_scaling(where, data, rope), local_theta


def _rope_theta(where: str, data: dict[str, Any], rope: dict[str, Any]) -> float:
    # transformers 5 writes the base into the rope object, 4 beside it; the object wins.
    return float(read_number(where, {**data, **rope}, "rope_theta", float))


def _rope_kind(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _rope_scaling(where: str, data: dict[str, Any], rope: dict[str, Any]) -> RopeScaling | None:
    kind = _rope_kind(rope)
    # The kind is checked first. Otherwise the error for yarn, longrope or dynamic would name unknown fields.
    if kind not in ROPE_KINDS:
        raise InputError(f"{where}: rope type {kind} is not supported; known are {', '.join(ROPE_KINDS)}")
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise InputError(
            f"{where}: partial_rotary_factor={rope['partial_rotary_factor']} is not supported; expected 1"
        )
    if unknown := sorted(set(rope) - _ROPE_FIELDS - {"partial_rotary_factor"}):
        raise InputError(f"{where}: field {unknown[0]} of rope type {kind} is not supported; remove it")
    # "default" with a factor is not stretched: transformers ignores the factor as well.
    if kind == "default":
        return None
    factor = float(read_number(where, rope, "factor", float))
    if kind == "linear":
        return RopeScaling(kind, factor)
    return RopeScaling(
        kind,
        factor,
        float(read_number(where, rope, "low_freq_factor", float)),
        float(read_number(where, rope, "high_freq_factor", float)),
        # Beside the object in some files.
        read_number(where, {**data, **rope}, "original_max_position_embeddings", int),
    )


def write_rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """Return the object rope_scaling of a ``config.json``."""
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return fields
