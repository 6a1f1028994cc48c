"""Tiny models of every family, made by transformers with random weights throughout.

Each case is a ``config.json`` as transformers 4 wrote it, small enough to run in a moment and odd enough that
no part of the decoder can be left out: grouped queries, heads wider than width / heads, windows and rope
thresholds far below the length of a test, soft-caps where the values are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCAB, LENGTH, WINDOW = 97, 48, 7

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# One divisor for each of the 12 frequencies of a head.
LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "short_factor": [1.0 + 0.1 * i for i in range(12)],
    "long_factor": [1.5 + 0.5 * i for i in range(12)],
}
# Phi-4-mini rotates three quarters of a head; heads of Phi-3 have the width / heads, here 16.
PHI3_128K = {
    "tie_word_embeddings": True,
    "head_dim": 16,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(6)],
        "long_factor": [2.0 + 0.5 * i for i in range(6)],
    },
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def _case(model_type: str, architecture: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **SHAPE, **fields}


CASES: dict[str, dict[str, Any]] = {
    "llama": _case("llama", "LlamaForCausalLM", tie_word_embeddings=False),
    "llama-3": _case(
        "llama",
        "LlamaForCausalLM",
        tie_word_embeddings=True,
        num_key_value_heads=1,
        rope_theta=500.0,
        rope_scaling=LLAMA3,
    ),
    "llama-linear-rope": _case(
        "llama", "LlamaForCausalLM", rope_scaling={"type": "linear", "factor": 3.0}, rope_theta=100.0
    ),
    "llama-dynamic-rope": _case(
        "llama",
        "LlamaForCausalLM",
        max_position_embeddings=30,
        rope_scaling={"rope_type": "dynamic", "factor": 4.0},
    ),
    "llama-longrope": _case(
        "llama", "LlamaForCausalLM", rope_scaling=LONGROPE | {"original_max_position_embeddings": 40}
    ),
    "llama-biases": _case("llama", "LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    "mistral-yarn": _case("mistral", "MistralForCausalLM", sliding_window=WINDOW, rope_scaling=YARN),
    "mistral": _case("mistral", "MistralForCausalLM", sliding_window=WINDOW),
    "mistral-no-window": _case("mistral", "MistralForCausalLM", sliding_window=None),
    "qwen2": _case("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True),
    "qwen2-windows": _case(
        "qwen2", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": _case("qwen3", "Qwen3ForCausalLM", tie_word_embeddings=True, rope_theta=1000.0),
    "qwen3-yarn-biases": _case(
        "qwen3",
        "Qwen3ForCausalLM",
        attention_bias=True,
        rope_parameters={
            **YARN,
            "rope_theta": 500.0,
            "beta_fast": 8.0,
            "beta_slow": 0.5,
            "truncate": False,
            "mscale": 1.2,
            "mscale_all_dim": 0.7,
        },
    ),
    "qwen3-windows": _case(
        "qwen3",
        "Qwen3ForCausalLM",
        use_sliding_window=True,
        sliding_window=WINDOW,
        layer_types=[_SLIDING, _FULL, _SLIDING],
    ),
    "gemma": _case("gemma", "GemmaForCausalLM", hidden_act="gelu", hidden_activation=None),
    "gemma2": _case(
        "gemma2",
        "Gemma2ForCausalLM",
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=11,
        sliding_window=WINDOW,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=4.0,
    ),
    "gemma2-untied": _case(
        "gemma2",
        "Gemma2ForCausalLM",
        tie_word_embeddings=False,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        layer_types=[_FULL, _SLIDING, _SLIDING],
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    "gemma3": _case(
        "gemma3_text",
        "Gemma3ForCausalLM",
        num_hidden_layers=7,
        query_pre_attn_scalar=11,
        sliding_window=WINDOW,
        sliding_window_pattern=6,
        rope_theta=5000.0,
        rope_local_base_freq=50.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "olmo2": _case("olmo2", "Olmo2ForCausalLM", tie_word_embeddings=False, rope_theta=500.0),
    "phi3": _case("phi3", "Phi3ForCausalLM", tie_word_embeddings=False),
    "phi3-short": _case("phi3", "Phi3ForCausalLM", **PHI3_128K, original_max_position_embeddings=64),
    "phi3-long": _case("phi3", "Phi3ForCausalLM", **PHI3_128K, original_max_position_embeddings=16),
    "phi3-windows": _case("phi3", "Phi3ForCausalLM", tie_word_embeddings=False, sliding_window=WINDOW),
}
# One case of each family.
FAMILY_CASES = ("llama-3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "phi3")


def write_config(folder: Path, fields: dict[str, Any]) -> Path:
    """Write a ``config.json`` of these fields."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def make_model(folder: Path, fields: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model of these fields; norms and biases are random too, which they are not at birth."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(write_config(folder, fields))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Norms start at 1, or at 0 where they multiply by 1 + weight; biases start at 0.
            parameter.copy_(0.15 * noise if parameter.ndim > 1 else parameter + 0.3 * noise)
    return model


def their_logits(model: Any, tokens: Any) -> Any:
    """Float32 logits of a transformers model, int [B, T] to [B, T, V]."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens).long(), use_cache=False).logits.float().numpy()
