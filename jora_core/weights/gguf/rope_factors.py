"""The scaling of rotary frequencies in GGUF files: fields for simple kinds, tensors of divisors else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.rope_config import RopeScaling
from jora_core.base.errors import InputError
from jora_core.base.notices import notice

ROPE_FREQS, ROPE_LONG, ROPE_SHORT = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
_PUBLISHED = RopeScaling("llama3", 8.0)
# Original lengths that a tensor of divisors is compared with, the published one first.
_LENGTHS = (8192, *(2**power for power in range(4, 21) if power != 13))
_CLOSE = 1e-5


def llama3_divisors(theta: float, width: int, scaling: RopeScaling) -> np.ndarray:
    """Return the divisor of each rotary frequency under Llama 3's scaling, float32 [width/2].

    Source: `apply_scaling` of Meta's Llama 3.1 reference code.

    Args:
        theta: rotary base.
        width: number of rotated dimensions of a head.
        scaling: the scaling, of kind llama3.
    """
    frequency = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    turns = scaling.original_max_positions * frequency / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32)


def read_rope_fields(
    fields: Mapping[str, Any],
    theta: float,
    width: int,
    read: Callable[[str], np.ndarray | None],
    where: str,
) -> dict[str, Any] | None:
    """Return the object rope_scaling of a ``config.json``, None for no scaling.

    Args:
        fields: the fields of the architecture, without its prefix.
        theta: rotary base.
        width: number of rotated dimensions of a head.
        read: returns a tensor by name, None if the file has no such tensor.
        where: name of the file, for errors.

    Raises:
        InputError: a kind of scaling that is not known.
    """
    original = fields.get("rope.scaling.original_context_length")
    long, short = read(ROPE_LONG), read(ROPE_SHORT)
    if long is not None and short is not None:
        return {
            "rope_type": "longrope",
            "short_factor": _numbers(short),
            "long_factor": _numbers(long),
            "original_max_position_embeddings": int(original or fields["context_length"]),
            "attention_factor": _exact(fields.get("rope.scaling.attn_factor", 1.0)),
            **({"factor": _exact(fields[factor])} if (factor := "rope.scaling.factor") in fields else {}),
        }
    divisors = read(ROPE_FREQS)
    if divisors is not None:
        return _from_divisors(np.asarray(divisors, np.float32).reshape(-1), theta, width, fields, where)
    kind = fields.get("rope.scaling.type", "none")
    factor = _exact(fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 1.0)))
    if kind == "none" and "rope.scale_linear" in fields and factor not in (0.0, 1.0):
        kind = "linear"  # the field of files from before rope.scaling
    if kind == "none" or factor == 0.0:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        magnitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": int(original or fields["context_length"]),
            "beta_fast": _exact(fields.get("rope.scaling.yarn_beta_fast", 32.0)),
            "beta_slow": _exact(fields.get("rope.scaling.yarn_beta_slow", 1.0)),
            # llama.cpp multiplies yarn's own factor by the one of the file.
            "attention_factor": magnitude * _exact(fields.get("rope.scaling.attn_factor", 1.0)),
        }
    raise InputError(
        f"{where}: rope.scaling.type {kind!r} is not read; expected none, linear, yarn or longrope"
    )


def _from_divisors(
    divisors: np.ndarray, theta: float, width: int, fields: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return the scaling of a tensor of divisors: Llama 3's if it is that, else the divisors themselves."""
    if divisors.shape != (width // 2,):
        raise InputError(f"{where}: {ROPE_FREQS} has {divisors.size} values, expected {width // 2}")
    factor = float(divisors.max())
    for length in _LENGTHS if factor > 1 else ():
        guess = dataclasses.replace(_PUBLISHED, factor=factor, original_max_positions=length)
        if np.allclose(llama3_divisors(theta, width, guess), divisors, rtol=_CLOSE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": guess.low_freq_factor,
                "high_freq_factor": guess.high_freq_factor,
                "original_max_position_embeddings": length,
            }
    notice(f"{where}: {ROPE_FREQS} is no scaling of Llama 3; it is kept as longrope with the same divisors")
    return {
        "rope_type": "longrope",
        "short_factor": _numbers(divisors),
        "long_factor": _numbers(divisors),
        "original_max_position_embeddings": int(fields["context_length"]),
        "factor": 1.0,
        "attention_factor": 1.0,
    }


def write_rope_fields(config: ModelConfig, where: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the fields of the architecture, without its prefix, and the tensors that say a model's scaling.

    Args:
        config: the model's.
        where: name of the model, for errors.

    Raises:
        InputError: llama.cpp does not know the scaling.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return {}, {}
    if scaling.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}, {}
    if scaling.kind == "llama3":
        return {}, {ROPE_FREQS: llama3_divisors(config.rope_theta, config.rotary_width, scaling)}
    fields: dict[str, Any] = {
        "rope.scaling.type": scaling.kind,
        "rope.scaling.factor": scaling.factor,
        "rope.scaling.original_context_length": scaling.original_max_positions,
    }
    if scaling.kind == "longrope":
        fields["rope.scaling.attn_factor"] = scaling.attention_factor
        factors = {ROPE_LONG: scaling.long_factors, ROPE_SHORT: scaling.short_factors}
        return fields, {name: np.asarray(values, np.float32) for name, values in factors.items()}
    if scaling.kind == "yarn" and scaling.truncate:
        magnitude = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
        fields |= {
            "rope.scaling.attn_factor": scaling.attention_factor / magnitude,
            "rope.scaling.yarn_beta_fast": scaling.beta_fast,
            "rope.scaling.yarn_beta_slow": scaling.beta_slow,
        }
        return fields, {}
    what = "yarn without truncate" if scaling.kind == "yarn" else f"rope type {scaling.kind}"
    raise InputError(f"{where}: GGUF cannot say {what}; leave gguf out of export.formats")


def _numbers(values: np.ndarray) -> list[float]:
    return [_exact(value) for value in np.asarray(values, np.float32).reshape(-1).tolist()]


def _exact(value: float) -> float:
    """Return the shortest decimal number that has the same float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
