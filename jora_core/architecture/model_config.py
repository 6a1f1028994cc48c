"""The shape of a model, read from and written to a Hugging Face ``config.json``.

`jora_core.architecture.families` lists the architectures and their differences. A field that this decoder
would compute differently is refused by name. So every model that loads is computed exactly.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_core.architecture.families import (
    FAMILIES,
    DecoderParts,
    Family,
    find_family,
    refuse_quantized,
)
from jora_core.architecture.layer_windows import read_windows, write_windows
from jora_core.architecture.rope_config import RopeScaling, read_rope, write_rope_scaling
from jora_core.architecture.text_part import decoder_fields, has_text_part
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_flag, read_json_object, read_number, read_optional
from jora_core.base.notices import notice

__all__ = ["ModelConfig", "RopeScaling", "read_json_object"]


@dataclass(frozen=True)
class ModelConfig(DecoderParts):
    """Shape of one decoder, with the `DecoderParts` of its family.

    Shape letters: V vocab_size, D hidden_size, F intermediate_size, L num_layers, N num_heads,
    K num_kv_heads, H head_dim.

    Attributes:
        rope_theta, rope_scaling: rotary base, and the scaling of rotary frequencies. Where
            `local_rope_theta` is set, both apply only to layers without a window.
        family: model_type in the ``config.json``.
        embedding_scale: factor on token embeddings (None: 1).
        attention_scale: factor on attention scores (None: 1/√H).
        attention_softcap, logit_softcap: c in c·tanh(x/c) on scores and on logits.
        windows: attention window of each layer in tokens, the query's own token included; 0 for a layer
            without a window, () if no layer has one.
        local_rope_theta: rotary base of the layers with a window, whose frequencies are not scaled.
        partial_rotary: share of each head's dimensions that is rotated.
    """

    # Hashable throughout (tuples, no lists): a config is a static argument of compiled functions.
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
    # Several: Llama 3.1 has one for the end of a text and another for the end of a turn.
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    family: str = "llama"
    embedding_scale: float | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    windows: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    partial_rotary: float = 1.0

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
        # Grouped-query attention (arXiv:2305.13245): each key/value head serves as many query heads.
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model config: num_attention_heads ({self.num_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        # Rotary positions rotate the first half of a head against the second.
        if self.head_dim < 2 or self.head_dim % 2:
            raise InputError(
                f"model config: head_dim must be even for rotary positions, found {self.head_dim}"
            )
        for name, ids in (
            ("bos_token_id", (self.bos_token_id,)),
            ("eos_token_id", self.eos_token_ids),
            ("pad_token_id", (self.pad_token_id,)),
        ):
            for token in ids:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise InputError(
                        f"model config: {name} is {token}, which is not one of the embedding's "
                        f"{self.vocab_size} rows (vocab_size); correct the id"
                    )
        for name in ("rope_theta", "local_rope_theta", "attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"model config: {name} must be positive, found {value}")
        if self.windows and len(self.windows) != self.num_layers:
            raise InputError(
                f"model config: {len(self.windows)} windows, {self.num_layers} layers; expected one a layer"
            )

    @property
    def rotary_width(self) -> int:
        """Number of dimensions of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary)

    @classmethod
    def from_hf(cls, folder: Path | str) -> ModelConfig:
        """Read ``config.json`` of a Hugging Face model folder, as transformers 4 or 5 writes it.

        Raises:
            InputError: folder or file missing, broken JSON, an architecture or field value not supported.
        """
        folder = Path(folder)
        if folder.is_file():
            raise InputError(
                f"model folder {folder} is a file; give its folder, {folder.parent}, or a .gguf file"
            )
        if not folder.is_dir():
            raise InputError(f"model folder {folder} does not exist; give a folder in Hugging Face layout")
        path = folder / "config.json"
        fields = read_json_object(path, f"model folder {folder}")
        config = cls.from_fields(fields, str(path))
        if has_text_part(fields):
            notice(f"{path}: a model of images and text; its text part (text_config) is read")
        return config

    @classmethod
    def from_fields(cls, given: dict[str, Any], where: str = "model config") -> ModelConfig:
        """Make a config from the fields of a ``config.json``.

        Args:
            given: the fields of the file, without defaults.
            where: name of the file, for error messages.

        Raises:
            InputError: an architecture or field value that is not supported, or a missing width.
        """
        try:
            return cls._from_fields(given, where)
        except InputError as err:
            # Checks of a config made by hand name no file.
            raise InputError(str(err).replace("model config:", f"{where}:", 1)) from None

    @classmethod
    def _from_fields(cls, given: dict[str, Any], where: str) -> ModelConfig:
        given = decoder_fields(given, where)
        refuse_quantized(given, where)
        family = find_family(given, where)
        family.check(given, where)
        # Checked before defaults are filled in: a message names only what the file says.
        data = family.complete(given)
        heads = read_number(where, data, "num_attention_heads", int)
        hidden = read_number(where, data, "hidden_size", int)
        layers = read_number(where, data, "num_hidden_layers", int)
        # max(…, 1): a file with 0 heads is refused below by name, and not by a division by zero here.
        if data["head_dim"] is None and hidden % max(heads, 1):
            raise InputError(
                f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
            )
        head_dim = read_number(where, data, "head_dim", int, hidden // max(heads, 1))
        rope = read_rope(where, data, family, head_dim)
        # Gemma's: the attention scale is its inverse square root.
        query_scalar = read_optional(where, data, "query_pre_attn_scalar", int)
        if query_scalar is not None and query_scalar < 1:
            raise InputError(f"{where}: query_pre_attn_scalar must be at least 1, found {query_scalar}")
        return cls(
            vocab_size=read_number(where, data, "vocab_size", int),
            hidden_size=hidden,
            intermediate_size=read_number(where, data, "intermediate_size", int),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=read_number(where, data, "num_key_value_heads", int, heads),
            head_dim=head_dim,
            max_positions=read_number(where, data, "max_position_embeddings", int),
            rope_theta=rope.theta,
            rope_scaling=rope.scaling,
            norm_eps=float(read_number(where, data, "rms_norm_eps", float)),
            tie_embeddings=read_flag(where, data, "tie_word_embeddings"),
            initializer_range=float(read_number(where, data, "initializer_range", float)),
            bos_token_id=read_optional(where, data, "bos_token_id", int),
            eos_token_ids=_token_ids(where, data.get("eos_token_id")),
            pad_token_id=read_optional(where, data, "pad_token_id", int),
            family=family.model_type,
            # In full precision here; `embed` rounds it to the type of the weights, as transformers does.
            embedding_scale=math.sqrt(hidden) if family.scaled_embedding else None,
            attention_scale=None if query_scalar is None else query_scalar**-0.5,
            attention_softcap=read_optional(where, data, "attn_logit_softcapping", float),
            logit_softcap=read_optional(where, data, "final_logit_softcapping", float),
            windows=read_windows(family, data, layers, where),
            local_rope_theta=rope.local_theta,
            partial_rotary=rope.partial,
            **(family.parts() | _biases(where, data, family)),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the ``config.json`` fields that `from_hf` and `transformers` read as this config.

        Raises:
            InputError: the family's ``config.json`` cannot express this config.
        """
        family = FAMILIES.get(self.family)
        if family is None:
            raise InputError(
                f"model config: family {self.family!r} is unknown; expected one of {', '.join(FAMILIES)}"
            )
        ids = self.eos_token_ids
        fields = {
            **family.constants(),
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
            "rope_scaling": None if self.rope_scaling is None else write_rope_scaling(self.rope_scaling),
            "tie_word_embeddings": self.tie_embeddings,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            # transformers writes one id as a number and several as a list.
            "eos_token_id": ids[0] if len(ids) == 1 else list(ids) or None,
            "pad_token_id": self.pad_token_id,
            **write_windows(family, self.windows, self.num_layers),
        }
        if "partial_rotary_factor" in family.defaults:
            fields["partial_rotary_factor"] = self.partial_rotary
        if self.rope_scaling is not None and "original_max_position_embeddings" in family.defaults:
            # transformers reads this field of Phi-3 beside the object too, and prefers it.
            fields["original_max_position_embeddings"] = self.rope_scaling.original_max_positions
        if "attention_bias" in family.defaults:
            fields["attention_bias"] = self.output_bias
        if "mlp_bias" in family.defaults:
            fields["mlp_bias"] = self.mlp_bias
        if family.local_rope:
            fields["rope_local_base_freq"] = self.local_rope_theta
        if self.attention_scale is not None:
            # An integer in the file; the inverse square root of a float is not exactly whole.
            fields["query_pre_attn_scalar"] = round(self.attention_scale**-2)
        # A family that knows a soft-cap has a default other than none, so "none" must be written too.
        for name, value in (
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ):
            if value is not None or name in family.defaults:
                fields[name] = value
        # Last, over all fields: a field that `to_hf` forgets is an error here, not a wrong file.
        self._check_reads_back(fields)
        return fields

    def _check_reads_back(self, fields: dict[str, Any]) -> None:
        """Refuse a config that its family's ``config.json`` cannot express, such as windows for Llama."""
        # Field by field and not `again != self`: the message names the field.
        again = ModelConfig.from_fields(fields)
        for each in dataclasses.fields(self):
            ours, theirs = getattr(self, each.name), getattr(again, each.name)
            if ours != theirs:
                raise InputError(
                    f"model config: a config.json of family {self.family} cannot say {each.name}={ours!r}; "
                    f"it would be read as {theirs!r}"
                )


def _biases(where: str, data: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the parts of a family that fields of its ``config.json`` turn on."""
    parts: dict[str, Any] = {}
    if "attention_bias" in family.defaults and read_flag(where, data, "attention_bias"):
        parts |= {"qkv_bias": True, "output_bias": True}
    if "mlp_bias" in family.defaults:
        parts["mlp_bias"] = read_flag(where, data, "mlp_bias")
    return parts


def _token_ids(where: str, value: Any) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(read_number(where, {"eos_token_id": each}, "eos_token_id", int) for each in ids)
