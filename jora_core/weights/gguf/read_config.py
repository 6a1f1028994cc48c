"""The configuration of a model from the metadata of its GGUF file.

Sources: `gguf.constants` for the names of the fields, `llama-model.cpp` for what llama.cpp computes where a
file says nothing: the windows and the attention scale of Gemma.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.weights.gguf.architectures import ARCHITECTURES, EMBEDDING, HEAD, GgufArchitecture
from jora_core.weights.gguf.gguf_file import GgufModel
from jora_core.weights.gguf.rope_factors import read_rope_fields

# Layers of the 27B models, whose attention scale is that of width / heads.
WIDE_GEMMA = {"gemma2": 46, "gemma3": 62}
GEMMA_PATTERNS = {"gemma2": 2, "gemma3": 6}
LOCAL_THETA = 10000.0
_SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def architecture_of(model: GgufModel) -> GgufArchitecture:
    """Return the architecture of a file.

    Raises:
        InputError: the file has none, or one that this core does not compute.
    """
    name = model.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise InputError(f"{model.path}: general.architecture is missing; fetch a file of a language model")
    # Converters of Mistral's own have written it so; llama.cpp writes llama.
    known = ARCHITECTURES.get("llama" if name == "mistral" else name)
    if known is None:
        raise InputError(
            f"{model.path}: the architecture {name!r} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)} and mistral"
        )
    return known


def read_config(model: GgufModel) -> ModelConfig:
    """Return the configuration of a GGUF file.

    Raises:
        InputError: a field is missing, or says something that this core does not compute.
    """
    architecture = architecture_of(model)
    where = str(model.path)
    fields = architecture_fields(model)

    def need(name: str) -> int:
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            what = "is missing" if value is None else "must be one whole number"
            raise InputError(f"{where}: {architecture.name}.{name} {what}; fetch the file again")
        return value

    if fields.get("expert_count"):
        raise InputError(
            f"{where}: it is a mixture of {fields['expert_count']} experts; a dense model is read"
        )
    if not model.has(EMBEDDING):
        raise InputError(f"{where}: the tensor {EMBEDDING} is missing; fetch a file of a language model")
    width, heads = need("embedding_length"), need("attention.head_count")
    head_dim = int(fields.get("attention.key_length", width // max(heads, 1)))
    if int(fields.get("attention.value_length", head_dim)) != head_dim:
        raise InputError(f"{where}: keys and values of different widths are not supported")
    rotated = int(fields.get("rope.dimension_count", head_dim))
    theta = _decimal(fields.get("rope.freq_base", 10000.0))
    family = "mistral" if fields.get("attention.sliding_window") and architecture.name == "llama" else None
    given: dict[str, Any] = {
        "model_type": family or architecture.family,
        "vocab_size": model.tensor(EMBEDDING).shape[0],
        "hidden_size": width,
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields.get("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "max_position_embeddings": need("context_length"),
        "rms_norm_eps": _decimal(fields.get("attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": theta,
        "tie_word_embeddings": not model.has(HEAD),
        "rope_scaling": read_rope_fields(
            fields, theta, rotated, lambda name: model.read(name) if model.has(name) else None, where
        ),
        **_token_ids(model),
        **_family_fields(architecture, model, fields, heads),
    }
    scaling = given["rope_scaling"]
    if architecture.family == "phi3" and scaling and "original_max_position_embeddings" in scaling:
        # Phi-3 has this field beside the object too, with a default.
        given["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    if rotated != head_dim:
        given["partial_rotary_factor"] = rotated / head_dim
    return ModelConfig.from_fields(given, where)


def architecture_fields(model: GgufModel) -> dict[str, Any]:
    """Return the fields of the architecture, without its prefix.

    Raises:
        InputError: a field differs by layer.
    """
    prefix = f"{model.metadata.get('general.architecture')}."
    fields = {
        name.removeprefix(prefix): value for name, value in model.metadata.items() if name.startswith(prefix)
    }
    for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        value = fields.get(name)
        if isinstance(value, np.ndarray):
            if len(set(value.tolist())) != 1:
                raise InputError(f"{model.path}: {prefix}{name} differs by layer, which is not supported")
            fields[name] = int(value[0])
    return fields


def _token_ids(model: GgufModel) -> dict[str, Any]:
    """Return the ids of special tokens, without those that have no row in the embedding."""
    rows = model.tensor(EMBEDDING).shape[0]
    found = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = model.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        found[f"{ours}_token_id"] = int(number) if number is not None and number < rows else None
    return found


def _family_fields(
    architecture: GgufArchitecture, model: GgufModel, fields: dict[str, Any], heads: int
) -> dict[str, Any]:
    """Return the fields that only some families have."""
    name = architecture.name
    window = fields.get("attention.sliding_window")
    if name in ("llama", "phi3"):
        biased = {"attention_bias": True} if model.has("blk.0.attn_q.bias") and name == "llama" else {}
        if model.has("blk.0.ffn_up.bias"):
            biased["mlp_bias"] = True
        return biased | ({"sliding_window": int(window)} if window else {})
    if name == "qwen3":
        return {"attention_bias": model.has("blk.0.attn_q.bias")}
    if name not in GEMMA_PATTERNS:
        return {}
    layers, pattern = int(fields["block_count"]), GEMMA_PATTERNS[name]
    wide = layers == WIDE_GEMMA[name]
    key_length = int(fields.get("attention.key_length", 256))
    found: dict[str, Any] = {
        "sliding_window": int(window or 4096),
        "query_pre_attn_scalar": int(fields["embedding_length"]) // heads if wide else key_length,
        "layer_types": [
            "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)
        ],
    }
    if name == "gemma2":
        return found | {cap: _decimal(fields.get(cap, usual)) for cap, usual in _SOFTCAPS.items()}
    cap = fields.get("final_logit_softcapping")
    return found | {
        "rope_local_base_freq": _decimal(fields.get("rope.freq_base_swa", LOCAL_THETA)),
        "final_logit_softcapping": _decimal(cap) if cap else None,
    }


def _decimal(value: float) -> float:
    """Return the shortest decimal number with the same float32, as the original file spelled it."""
    return float(str(np.float32(value)))
