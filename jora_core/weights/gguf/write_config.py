"""The metadata of a GGUF file from the configuration of a model.

What llama.cpp would compute differently is refused, so a file that is written computes the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jora_core.architecture.families import FAMILIES
from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from jora_core.weights.gguf.architectures import BY_FAMILY, GgufArchitecture
from jora_core.weights.gguf.read_config import GEMMA_PATTERNS, LOCAL_THETA, WIDE_GEMMA
from jora_core.weights.gguf.rope_factors import write_rope_fields

# Architectures of llama.cpp that have no head width of their own.
_HEADS_SPLIT_THE_WIDTH = frozenset({"qwen2", "olmo2", "phi3"})


def write_config(
    config: ModelConfig, where: str
) -> tuple[GgufArchitecture, dict[str, Any], dict[str, np.ndarray]]:
    """Return the architecture, its fields without their prefix, and tensors of rotary divisors.

    Args:
        config: the model's.
        where: name of the model, for errors.

    Raises:
        InputError: llama.cpp would compute the model differently.
    """
    architecture = BY_FAMILY[config.family]
    _refuse_what_differs(config, architecture.name, where)
    fields, tensors = write_rope_fields(config, where)
    fields |= {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.rotary_width,
    }
    if config.windows:
        fields["attention.sliding_window"] = max(config.windows)
    if config.family == "mistral" and config.windows:
        notice(
            f"{where}: llama.cpp has no windows for Mistral; texts of more than {max(config.windows):,} "
            "tokens are computed otherwise there"
        )
    if (
        architecture.name in _HEADS_SPLIT_THE_WIDTH
        and config.num_heads * config.head_dim != config.hidden_size
    ):
        notice(
            f"{where}: llama.cpp does not load this: of {FAMILIES[config.family].title} it expects heads "
            f"of width {config.hidden_size // config.num_heads}, not {config.head_dim}"
        )
    if config.rope_scaling is not None and config.rope_scaling.kind == "longrope":
        notice(
            f"{where}: the answers of llama.cpp with longrope were seen to differ; compare them before use"
        )
    if config.attention_softcap is not None:
        fields["attn_logit_softcapping"] = config.attention_softcap
    if config.logit_softcap is not None:
        fields["final_logit_softcapping"] = config.logit_softcap
    if config.local_rope_theta not in (None, LOCAL_THETA):
        fields["rope.freq_base_swa"] = config.local_rope_theta
    return architecture, fields, tensors


def _refuse_what_differs(config: ModelConfig, name: str, where: str) -> None:
    """Refuse what a GGUF file cannot say about a model."""
    problem = _problem(config, name)
    if problem:
        raise InputError(
            f"{where}: a GGUF file of a {FAMILIES[config.family].title} model cannot say {problem}; leave "
            "gguf out of export.formats"
        )


def _problem(config: ModelConfig, name: str) -> str | None:
    if name in ("qwen2", "qwen3", "olmo2", "gemma") and config.windows:
        return "windows"
    if (name not in ("llama", "qwen2") and config.qkv_bias) or (name != "llama" and config.output_bias):
        return "these biases"
    if name in ("gemma", "gemma2") and not config.tie_embeddings:
        return "a head of its own"
    if name not in GEMMA_PATTERNS:
        return None
    pattern = GEMMA_PATTERNS[name]
    usual = [(layer + 1) % pattern != 0 for layer in range(config.num_layers)]
    if [bool(window) for window in config.windows or [0] * config.num_layers] != usual:
        return f"other windows than in all layers but every {pattern}th"
    wide = config.num_layers == WIDE_GEMMA[name]
    scalar = config.hidden_size // config.num_heads if wide else config.head_dim
    if config.attention_scale is None or round(config.attention_scale**-2) != scalar:
        return f"another query_pre_attn_scalar than {scalar}"
    if name == "gemma2" and None in (config.attention_softcap, config.logit_softcap):
        return "that there is no soft-cap"
    return None
