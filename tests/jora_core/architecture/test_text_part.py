"""The text part of models of images and text: the same tensors under every spelling of their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.parameters.initialize import init_params
from jora_core.weights.checkpoint_folder import hf_tensors, save_params
from jora_core.weights.load_params import load_params
from jora_core.weights.model_folder import read_model
from jora_core.weights.tensor_store import write_tensors
from tests.jora_core.family_cases import CASES

TEXT = next(case for case in CASES.values() if case.get("model_type") == "gemma3_text")
VISION = {"hidden_size": 16, "image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"}
WHOLE = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": VISION}


def older(name: str) -> str:
    return f"language_model.{name}"


def newer(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


@pytest.mark.parametrize(
    ("rename", "tied", "beside"),
    [(older, True, True), (older, False, False), (newer, True, False), (newer, False, True)],
    ids=["transformers-4-tied", "transformers-4", "transformers-5-tied", "transformers-5"],
)
def test_the_text_part_is_the_model_of_text(
    tmp_path: Path, rename: Callable[[str], str], tied: bool, beside: bool
) -> None:
    fields: dict[str, Any] = {**TEXT, "tie_word_embeddings": tied, "eos_token_id": [1, 5], "pad_token_id": 0}
    config = ModelConfig.from_fields(fields)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(3))
    save_params(params, config, tmp_path / "text", jnp.dtype("float32"))
    tensors = {rename(name): value for name, value in hf_tensors(params, config, "float32").items()}
    tensors["vision_tower.vision_model.embeddings.position_embedding.weight"] = np.zeros((4, 16), np.float32)
    tensors["multi_modal_projector.mm_input_projection_weight"] = np.zeros((16, 8), np.float32)
    whole = tmp_path / "whole"
    whole.mkdir()
    shared = {name: fields.pop(name) for name in ("tie_word_embeddings", "eos_token_id") if beside}
    (whole / "config.json").write_text(json.dumps({**WHOLE, **shared, "text_config": fields}))
    write_tensors(whole / "model.safetensors", tensors)
    found = read_model(whole)
    assert found == read_model(tmp_path / "text") and found.eos_token_ids == (1, 5)
    assert jax.tree.all(jax.tree.map(np.array_equal, load_params(whole, found), params))


@pytest.mark.parametrize(
    "text",
    [
        # google/gemma-3-4b-it as published: what is missing are the defaults of transformers.
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
         "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "model_type": "gemma3_text"},
        {"hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "sliding_window": 1024,
         "num_attention_heads": 16, "num_key_value_heads": 8},
        {"vocab_size": 256, "hidden_size": None, "num_hidden_layers": 6},
    ],
    ids=["4b", "12b", "nulls"],
)  # fmt: skip
def test_a_published_text_config_is_read_as_transformers_reads_it(
    tmp_path: Path, text: dict[str, Any]
) -> None:
    from transformers import Gemma3Config

    (tmp_path / "config.json").write_text(json.dumps(WHOLE | {"text_config": text}))
    config = ModelConfig.from_hf(tmp_path)
    theirs: Any = Gemma3Config(
        **WHOLE, text_config={k: v for k, v in text.items() if v is not None}
    ).text_config
    assert config.hidden_size == theirs.hidden_size
    assert (config.vocab_size, config.num_layers) == (theirs.vocab_size, theirs.num_hidden_layers)
    assert (config.num_heads, config.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert config.head_dim == theirs.head_dim and config.rope_theta == 1e6
    kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
    assert kinds == theirs.layer_types
