"""Configs are read as Hugging Face writes them, and refused by name where the decoder would differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jora_core.architecture.families import FAMILIES
from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.rope_config import RopeScaling
from jora_core.base.errors import InputError
from tests.jora_core.family_cases import CASES, write_config

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


def test_rope_theta_in_one_of_two_objects(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    expected = read(tmp_path, rope_theta=5e5, rope_scaling=linear)
    both = {"rope_scaling": linear, "rope_parameters": {"rope_theta": 5e5}}
    assert read(tmp_path, rope_theta="absent", **both) == expected
    nulls = linear | {"attention_factor": None, "beta_fast": None}
    assert read(tmp_path, rope_theta=5e5, rope_scaling=nulls, rope_parameters=None) == expected


ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    LLAMA3,
]
ROPE_FIELDS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor",
               "high_freq_factor", "short_factor", "long_factor", "partial_rotary_factor")  # fmt: skip


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.get("rope_type") or rope["type"])
def test_rope_in_every_spelling_and_with_nulls(tmp_path: Path, rope: dict[str, Any]) -> None:
    expected = read(tmp_path, rope_theta=5e5, rope_scaling=rope)
    assert expected.rope_theta == 5e5 and expected.rope_scaling is not None
    nulls = dict.fromkeys(ROPE_FIELDS) | rope
    for changes in (
        {"rope_theta": 5e5, "rope_scaling": nulls},
        {"rope_scaling": rope, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_scaling": None, "rope_parameters": nulls | {"rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": rope, "rope_parameters": rope},
        {"rope_theta": None, "rope_scaling": nulls, "rope_parameters": {"rope_theta": 5e5} | rope},
    ):
        assert read(tmp_path, **changes) == expected


def test_old_names_of_longrope() -> None:
    factors = {"short_factor": [1.0], "long_factor": [2.0]}
    for name in ("su", "yarn", "longrope"):
        config = ModelConfig.from_fields(
            minimal("phi3", max_position_embeddings=131072, rope_scaling={"type": name, **factors})
        )
        assert config.rope_scaling is not None
        assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("longrope", 32.0)
        assert config.rope_scaling.attention_factor == pytest.approx(1.1902380714238083)


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
        ({"model_type": "absent", "architectures": []}, "field model_type is missing"),
        (
            {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]},
            "mixture of experts; a dense",
        ),
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "a dense Mistral model is"),
        ({"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"]}, "Llama 3 is"),
        ({"model_type": ["llama"]}, "is not supported"),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
            "text_config, the text part of a gemma3 model, must be an object",
        ),
        ({"model_type": "qwen2"}, "architecture qwen2 (LlamaForCausalLM)"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"attention_bias": "yes"}, 'attention_bias must be true or false, found "yes"'),
        ({"mlp_bias": 1}, "mlp_bias must be true or false, found 1"),
        ({"hidden_act": "gelu"}, 'hidden_act="gelu"'),
        ({"quantization_config": {"bits": 4}}, "quantization_config says that the weights are quantized"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized (fp8), and an adapter needs"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "take the original repository"),
        ({"bos_token_id": 5000}, "config.json: bos_token_id is 5000, which is not one of the embedding's 64"),
        ({"eos_token_id": [2, -1]}, "eos_token_id is -1"),
        ({"pad_token_id": 64}, "pad_token_id is 64"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number"),
        ({"sliding_window": 128}, "sliding_window=128"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 2}}, 'rope type "ntk" is not supported'),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, 'rope type ["yarn"] is not supported'),
        ({"rope_scaling": {"rope_type": "yarn", "factor": -2}}, "positive factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_slow": 64}}, "beta_fast (32.0) from"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": 1}}, "truncate must be true or"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "field factor is missing"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "short_factor must list 4 numbers, found null"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1] * 4, "long_factor": [0] * 4}},
            "long_factor must list positive numbers, found 0.0",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": LLAMA3},
            "rope_scaling and rope_parameters name two values of rope type, linear and llama3",
        ),
        (
            {"rope_scaling": {"rope_theta": 5.0}, "rope_parameters": {"rope_theta": 6.0}},
            "two values of rope_theta, 5.0 and 6.0",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "field factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "positive factor"),
        ({"rope_scaling": {"mrope_section": [2, 2]}}, "field mrope_section of rope type default"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, "below high_freq_factor"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "field full_attention"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25"),
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar=64 is not supported for Llama"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=true"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types="),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings must be true or false, found "yes"'),
        ({"eos_token_id": ["2"]}, 'eos_token_id must be int, found "2"'),
        ({"rope_theta": -1.0}, "rope_theta must be positive"),
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


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LLaMAForCausalLM"]},
        {"architectures": "absent"},
        {"architectures": None},
        {"architectures": "LlamaForCausalLM"},
        {"model_type": "absent"},
        {"model_type": "LLaMA", "architectures": []},
    ],
    ids=str,
)
def test_spellings_of_an_architecture(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read(tmp_path, **changes) == read(tmp_path)


def test_null_is_as_absent(tmp_path: Path) -> None:
    named = ("tie_word_embeddings", "rope_theta", "max_position_embeddings", "initializer_range", "head_dim")
    others = ("hidden_act", "rope_scaling", "rope_parameters", "attention_bias", "sliding_window")
    nulls = dict.fromkeys([*named, *others])
    assert read(tmp_path, **nulls) == read(tmp_path)
    gemma = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "hidden_activation": None}
    more = dict.fromkeys(["tie_word_embeddings", "query_pre_attn_scalar", "head_dim"])
    given = ModelConfig.from_fields(FIELDS | gemma | more)
    assert given == ModelConfig.from_fields(FIELDS | gemma)
    assert given.tie_embeddings
    # Here null means "off".
    assert ModelConfig.from_fields(FIELDS | gemma | {"final_logit_softcapping": None}).logit_softcap is None


def test_a_config_with_a_byte_order_mark(tmp_path: Path) -> None:
    expected = read(tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ModelConfig.from_hf(tmp_path) == expected
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(InputError, match="Git-LFS pointer"):
        ModelConfig.from_hf(tmp_path)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ModelConfig.from_hf(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.json"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is a file; give its folder"):
        ModelConfig.from_hf(tmp_path / "config.json")
    with pytest.raises(InputError, match="not valid JSON"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        ModelConfig.from_hf(tmp_path)


def their_view(folder: Path) -> dict[str, Any]:
    """What transformers makes of a ``config.json``, in the words of `ModelConfig`."""
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(folder)
    kinds = getattr(theirs, "layer_types", None)
    window = getattr(theirs, "sliding_window", None)
    if kinds is None:
        windows = [window or 0] * theirs.num_hidden_layers
    else:
        windows = [window if kind == "sliding_attention" else 0 for kind in kinds]
    rope = theirs.rope_parameters
    scalar = getattr(theirs, "query_pre_attn_scalar", None)
    return {
        "num_kv_heads": theirs.num_key_value_heads,
        "head_dim": getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads),
        "max_positions": theirs.max_position_embeddings,
        "norm_eps": theirs.rms_norm_eps,
        "initializer_range": theirs.initializer_range,
        "tie_embeddings": theirs.tie_word_embeddings,
        "windows": tuple(windows) if any(windows) else (),
        "rope_theta": rope.get("full_attention", rope)["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"] if "sliding_attention" in rope else None,
        "attention_scale": None if scalar is None else scalar**-0.5,
        "attention_softcap": getattr(theirs, "attn_logit_softcapping", None),
        "logit_softcap": getattr(theirs, "final_logit_softcapping", None),
    }


def our_view(config: ModelConfig, names: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def minimal(model_type: str, **changes: Any) -> dict[str, Any]:
    """Nothing but the widths: everything else is left to the family."""
    widths = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 7,
        "num_attention_heads": 32,
    }
    return {"model_type": model_type, **widths, **changes}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_missing_fields_mean_what_transformers_takes(tmp_path: Path, model_type: str) -> None:
    folder = write_config(tmp_path, minimal(model_type))
    expected = their_view(folder)
    assert our_view(ModelConfig.from_hf(folder), expected) == expected


@pytest.mark.parametrize("case", CASES)
def test_read_as_transformers_reads_it(tmp_path: Path, case: str) -> None:
    folder = write_config(tmp_path, CASES[case])
    config = ModelConfig.from_hf(folder)
    expected = their_view(folder)
    assert our_view(config, expected) == expected
    write_config(folder, config.to_hf())
    assert ModelConfig.from_hf(folder) == config
    assert their_view(folder) == expected


def test_parts_of_each_family() -> None:
    flags = ("activation", "qkv_bias", "qk_norm", "norm_offset", "post_norms")
    silu, gelu = "silu", "gelu_tanh"
    for model_type, expected in {
        "llama": (silu, False, False, False, False),
        "mistral": (silu, False, False, False, False),
        "qwen2": (silu, True, False, False, False),
        "qwen3": (silu, False, True, False, False),
        "gemma": (gelu, False, False, True, False),
        "gemma2": (gelu, False, False, True, True),
        "gemma3_text": (gelu, False, True, True, True),
        "olmo2": (silu, False, False, False, True),
        "phi3": (silu, False, False, False, False),
    }.items():
        config = ModelConfig.from_fields(minimal(model_type))
        assert tuple(getattr(config, flag) for flag in flags) == expected
        assert config.embedding_scale == (8.0 if model_type.startswith("gemma") else None)


@pytest.mark.parametrize(
    "rope",
    [
        # google/gemma-3-1b-it as published, and as transformers 5 writes it.
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 6},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        },
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": None}},
    ],
    ids=["flat", "nested", "half"],
)
def test_both_spellings_of_gemma3(tmp_path: Path, rope: dict[str, Any]) -> None:
    folder = write_config(tmp_path, minimal("gemma3_text", sliding_window=512, **rope))
    config = ModelConfig.from_hf(folder)
    assert (config.rope_theta, config.local_rope_theta, config.rope_scaling) == (1e6, 1e4, None)
    assert config.windows == (512,) * 5 + (0, 512)
    assert our_view(config, their_view(folder)) == their_view(folder)


def test_scaling_of_gemma3_is_for_global_layers_only(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    flat = ModelConfig.from_fields(minimal("gemma3_text", rope_scaling=linear))
    nested = ModelConfig.from_fields(minimal("gemma3_text", rope_parameters={"full_attention": linear}))
    assert flat == nested
    assert (flat.rope_scaling, flat.local_rope_theta) == (RopeScaling("linear", 8.0), 1e4)
    with pytest.raises(InputError, match="sliding_attention has rope type linear"):
        ModelConfig.from_fields(minimal("gemma3_text", rope_parameters={"sliding_attention": linear}))


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("mistral", {"layer_types": ["full_attention"] * 7}, "layer_types="),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; expected a positive integer"),
        ("qwen2", {"attention_bias": False}, "attention_bias=false is not supported for Qwen2"),
        ("qwen2", {"use_sliding_window": "no"}, 'use_sliding_window="no"'),
        ("qwen2", {"layer_types": ["sliding_attention"] * 7}, "7 layers attend within a window"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": "all"}, "max_window_layers must be an"),
        ("olmo2", {"attention_bias": True}, "attention_bias=true is not supported for OLMo 2"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types must list 7 layers"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 7}, 'entry "chunked_attention" is not supported'),
        ("gemma", {"hidden_act": "relu"}, 'hidden_act="relu"'),
        ("gemma", {"hidden_activation": "gelu"}, 'hidden_activation="gelu"'),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention=true"),
        ("gemma2", {"sliding_window": None}, "sliding_window is null"),
        ("gemma2", {"sliding_window_pattern": 3}, "sliding_window_pattern=3"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be at least 1"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attention_softcap must be positive"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern must be an integer from 1"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 1e6}},
            "rope_parameters.rope_theta is not supported",
        ),
        ("gemma3_text", {"vision_config": {}}, "vision_config={}"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv=8.0 is not supported for OLMo 2"),
        ("phi3", {"partial_rotary_factor": 0.3, "head_dim": 10}, "gives 3 of 10 dimensions of a head"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 2}}, "partial_rotary_factor=2.0 gives"),
        ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0]}},
            "short_factor must list 1 numbers, found 2",
        ),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop=0.1 is not supported for Phi-3"),
    ],
    ids=str,
)
def test_refused_by_family(model_type: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelConfig.from_fields(minimal(model_type, **changes), "config.json")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_made_by_hand_is_not_written_as_another() -> None:
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "head_dim": 8}
    heads = {"num_heads": 4, "num_kv_heads": 2}
    with pytest.raises(InputError, match=r"family llama cannot say windows=\(4, 0\)"):
        ModelConfig(**shape, **heads, windows=(4, 0)).to_hf()
    with pytest.raises(InputError, match="family llama cannot say qk_norm=True"):
        ModelConfig(**shape, **heads, qk_norm=True).to_hf()
    with pytest.raises(InputError, match="family 'gpt2' is unknown"):
        ModelConfig(**shape, **heads, family="gpt2").to_hf()
    with pytest.raises(InputError, match="3 windows, 2 layers"):
        ModelConfig(**shape, **heads, windows=(4, 0, 4))
