"""Logits and greedy tokens of a real pretrained model, as transformers computed them in float32."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.tokenizer import load_tokenizer
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.model.decoder import forward, unembed
from jora_core.parameters.trees import Params
from jora_core.weights.load_params import load_params

FOLDER = Path(os.environ.get("JORA_SHARED", "../shared")) / "models" / "stories260k"
pytestmark = [
    pytest.mark.corpus,
    pytest.mark.skipif(
        not FOLDER.is_dir(), reason=f"no {FOLDER}: set JORA_SHARED to the folder of shared models"
    ),
]


@pytest.fixture(scope="module")
def model() -> tuple[ModelConfig, Params]:
    config = ModelConfig.from_hf(FOLDER)
    return config, load_params(FOLDER, config)


@pytest.fixture(scope="module")
def expected() -> list[dict]:
    entries = json.loads((FOLDER / "expected_greedy.json").read_text())
    assert len(entries) == 3
    return entries


def test_tokens_and_logits(model: tuple[ModelConfig, Params], expected: list[dict]) -> None:
    config, params = model
    tokenizer = load_tokenizer(FOLDER, config.vocab_size)
    for entry in expected:
        ids = entry["input_ids"]
        if entry["prompt"]:
            assert [tokenizer.bos_id, *tokenizer.encode(entry["prompt"]).tolist()] == ids
        tokens = jnp.asarray([ids], jnp.int32)
        places = jnp.arange(len(ids))[None], jnp.full_like(tokens, len(ids))
        hidden = jax.jit(forward, static_argnums=1)(params, config, tokens, *places)
        logits = unembed(params, config, hidden)
        np.testing.assert_allclose(logits[0, -1, :8], entry["last_logits_first8"], atol=1e-4)


def test_120_greedy_tokens(model: tuple[ModelConfig, Params], expected: list[dict]) -> None:
    config, params = model
    prompts = [np.asarray(entry["input_ids"], np.int32) for entry in expected]
    settings = GenerationSettings(eos_ids=config.eos_token_ids, max_new_tokens=120)
    answers = generate(params, config, prompts, settings)
    for entry, prompt, answer in zip(expected, prompts, answers, strict=True):
        assert len(answer) == 120
        assert [*prompt.tolist(), *answer.tolist()] == entry["greedy_ids"]
