"""Configs are read as Hugging Face writes them, and refused by name where the decoder would differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jora_core.config import ModelConfig, RopeScaling
from jora_core.errors import InputError

FIELDS: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def read(folder: Path, **changes: Any) -> ModelConfig:
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(fields))
    return ModelConfig.from_hf(folder)


def test_defaults_and_widths(tmp_path: Path) -> None:
    config = read(tmp_path, num_key_value_heads="absent")
    assert (config.num_kv_heads, config.head_dim, config.rope_theta) == (4, 8, 10000.0)
    assert config.eos_token_ids == (2, 3)
    assert read(tmp_path, head_dim=16).head_dim == 16


def test_both_spellings_of_rope(tmp_path: Path) -> None:
    old = read(tmp_path, rope_theta=5e5, rope_scaling=LLAMA3)
    new = read(tmp_path, rope_parameters={**LLAMA3, "rope_theta": 5e5})
    assert old == new
    assert new.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    linear = read(tmp_path, rope_scaling={"type": "linear", "factor": 2})
    assert linear.rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    "changes", [{}, {"rope_scaling": LLAMA3}, {"eos_token_id": 2}, {"eos_token_id": None}]
)
def test_to_hf_reads_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = read(tmp_path, **changes)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "architecture gpt2"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias=true"),
        ({"mlp_bias": True}, "mlp_bias=true"),
        ({"hidden_act": "gelu"}, 'hidden_act="gelu"'),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 128}, "sliding_window=128"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope type yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "field factor is missing"),
        ({"hidden_size": "absent"}, "field hidden_size is missing"),
        ({"vocab_size": "many"}, 'vocab_size must be int, found "many"'),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "not a multiple of num_attention_heads"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"num_hidden_layers": 0}, "num_layers must be at least 1"),
    ],
)
def test_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ModelConfig.from_hf(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.json"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        ModelConfig.from_hf(tmp_path)
