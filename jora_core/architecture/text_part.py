"""The decoder's fields in the ``config.json`` of a model of images and text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jora_core.base.errors import InputError

# model_type of the whole model: model_type and architecture of its text part.
_TEXT_PARTS = MappingProxyType({"gemma3": ("gemma3_text", "Gemma3ForCausalLM")})
# The published text_config of Gemma 3 4B leaves these out: they are the defaults of transformers.
_GEMMA3_WIDTHS: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
)
# Fields of the whole model that hold for its text part too.
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype")
# Prefixes of tensor names of the text part, as transformers 4 and 5 write them, and what replaces them.
TEXT_PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


def has_text_part(fields: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` is of a supported model of images and text."""
    kind = fields.get("model_type")
    return isinstance(kind, str) and kind in _TEXT_PARTS


def decoder_fields(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of the text decoder; those of a model of text alone are returned as they are.

    Args:
        fields: the fields of a ``config.json``.
        where: name of the file, for error messages.

    Raises:
        InputError: a model of images and text without text_config.
    """
    if not has_text_part(fields):
        return fields
    text = fields.get("text_config")
    if not isinstance(text, dict):
        raise InputError(
            f"{where}: text_config, the text part of a {fields['model_type']} model, must be an object; "
            "copy config.json from the model's repository again"
        )
    model_type, architecture = _TEXT_PARTS[fields["model_type"]]
    shared = {name: fields[name] for name in _SHARED if fields.get(name) is not None}
    own = {name: value for name, value in text.items() if value is not None or name not in _GEMMA3_WIDTHS}
    quantized = {k: fields[k] for k in ("quantization_config",) if fields.get(k) is not None}
    return {
        **_GEMMA3_WIDTHS,
        **own,
        **shared,
        **quantized,
        "model_type": model_type,
        "architectures": [architecture],
    }


def text_tensor_name(name: str) -> str | None:
    """Return a tensor's name in the text part of a model of images and text, None for another part's."""
    for prefix, ours in TEXT_PREFIXES:
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    # transformers 5 writes the head beside the parts.
    return name if name.startswith("lm_head.") else None
