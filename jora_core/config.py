"""The shape of a model, read from and written to a Hugging Face ``config.json``.

Only the Llama architecture is known. Whatever a config asks for that this decoder would compute differently
is refused by name: a model that loads is a model that is computed exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_core.errors import InputError

ROPE_KINDS = ("default", "linear", "llama3")

# Fields whose named values leave the computation as it is; any other value changes it.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "partial_rotary_factor": (1, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched (`kind` is "linear" or "llama3"; the rest only for llama3)."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama decoder: V vocab_size, D hidden_size, F intermediate_size, L num_layers, N num_heads,
    K num_kv_heads, H head_dim.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"model config: {name} must be at least 1, found {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model config: num_attention_heads ({self.num_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise InputError(
                f"model config: head_dim must be even for rotary positions, found {self.head_dim}"
            )

    @classmethod
    def from_hf(cls, folder: Path | str) -> ModelConfig:
        """Read ``config.json`` of a Hugging Face model folder.

        Raises:
            InputError: folder or file missing, broken JSON, another architecture, an unsupported field value.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"model folder {folder} does not exist; give a folder in Hugging Face layout")
        path = folder / "config.json"
        data = read_json_object(path, f"model folder {folder}")
        _check_supported(path, data)
        return cls._from_fields(path, data)

    @classmethod
    def _from_fields(cls, path: Path, data: dict[str, Any]) -> ModelConfig:
        heads = _number(path, data, "num_attention_heads", int)
        hidden = _number(path, data, "hidden_size", int)
        if data.get("head_dim") is None and hidden % max(heads, 1):
            raise InputError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        # transformers 5 moved rope_theta and rope_scaling into one object, rope_parameters.
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise InputError(f"{path}: rope_scaling must be an object, found {type(rope).__name__}")
        eos = data.get("eos_token_id")
        return cls(
            vocab_size=_number(path, data, "vocab_size", int),
            hidden_size=hidden,
            intermediate_size=_number(path, data, "intermediate_size", int),
            num_layers=_number(path, data, "num_hidden_layers", int),
            num_heads=heads,
            num_kv_heads=_number(path, data, "num_key_value_heads", int, heads),
            head_dim=_number(path, data, "head_dim", int, hidden // max(heads, 1)),
            max_positions=_number(path, data, "max_position_embeddings", int, 2048),
            rope_theta=float(_number(path, {**data, **rope}, "rope_theta", float, 10000.0)),
            rope_scaling=_rope_scaling(path, data, rope),
            norm_eps=float(_number(path, data, "rms_norm_eps", float, 1e-6)),
            tie_embeddings=bool(data.get("tie_word_embeddings", False)),
            initializer_range=float(_number(path, data, "initializer_range", float, 0.02)),
            bos_token_id=data.get("bos_token_id"),
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            pad_token_id=data.get("pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a ``config.json`` that `from_hf` and `transformers` read back as this config."""
        eos: int | list[int] | None = list(self.eos_token_ids) or None
        if isinstance(eos, list) and len(eos) == 1:
            eos = eos[0]
        scaling = None
        if self.rope_scaling is not None:
            scaling = {"rope_type": self.rope_scaling.kind, "factor": self.rope_scaling.factor}
            if self.rope_scaling.kind == "llama3":
                scaling |= {
                    "low_freq_factor": self.rope_scaling.low_freq_factor,
                    "high_freq_factor": self.rope_scaling.high_freq_factor,
                    "original_max_position_embeddings": self.rope_scaling.original_max_positions,
                }
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tie_embeddings,
            "initializer_range": self.initializer_range,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.pad_token_id,
        }


def read_json_object(path: Path, owner: str) -> dict[str, Any]:
    """Read a JSON file that must hold an object; `owner` says in the message whose file it is.

    Raises:
        InputError: missing or unreadable file, broken JSON, not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{owner} has no {path.name}") from None
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror or err}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as err:
        raise InputError(f"{path} is not valid JSON: {err}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, found {type(data).__name__}")
    return data


def _check_supported(path: Path, data: dict[str, Any]) -> None:
    model_type = data.get("model_type")
    architectures = data.get("architectures") or ["LlamaForCausalLM"]
    if model_type != "llama" or "LlamaForCausalLM" not in architectures:
        found = model_type if model_type != "llama" else ", ".join(map(str, architectures))
        raise InputError(f"{path}: architecture {found} is not supported; only llama (LlamaForCausalLM) is")
    for name, neutral in _NEUTRAL_VALUES.items():
        if name in data and data[name] not in neutral:
            raise InputError(
                f"{path}: {name}={json.dumps(data[name])} is not supported; expected {neutral[0]!r}"
            )


def _rope_scaling(path: Path, data: dict[str, Any], rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise InputError(f"{path}: rope type {kind} is not supported; known are {', '.join(ROPE_KINDS)}")
    if kind == "default":
        return None
    factor = float(_number(path, rope, "factor", float))
    if kind == "linear":
        return RopeScaling(kind, factor)
    return RopeScaling(
        kind,
        factor,
        float(_number(path, rope, "low_freq_factor", float)),
        float(_number(path, rope, "high_freq_factor", float)),
        _number(path, {**data, **rope}, "original_max_position_embeddings", int),
    )


def _number(path: Path, data: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A required or defaulted number of the config; integers are accepted where a float is expected."""
    value = data.get(name)
    value = default if value is None else value
    if value is None:
        raise InputError(f"{path}: field {name} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise InputError(f"{path}: {name} must be {kind.__name__}, found {json.dumps(value)}")
    return value
