"""The cache of every family: the same tokens as without any cache, and as transformers' own generation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.model.decoder import forward, unembed
from jora_core.parameters.trees import Params
from jora_core.weights.load_params import load_params
from tests.jora_core.family_cases import CASES, VOCAB, WINDOW, make_model

NEW = 14
# One within the window, which its answer leaves; one past it; one of a whole row.
PROMPTS = [np.random.default_rng(n).integers(3, VOCAB, n, dtype=np.int32) for n in (4, 21, 64)]
LENGTH = 80


@partial(jax.jit, static_argnums=1)
def next_token(params: Params, config: ModelConfig, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """The likeliest token after the first `length` of tokens [T]: the whole forward pass, no cache."""
    slot = jnp.arange(LENGTH)
    until = jnp.where(slot < length, length, 0)
    hidden = forward(params, config, tokens[None], slot[None], until[None])
    return jnp.argmax(unembed(params, config, hidden[0, length - 1]))


def without_cache(params: Params, config: ModelConfig, prompt: np.ndarray) -> list[int]:
    row = np.zeros(LENGTH, np.int32)
    row[: len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + NEW):
        row[length] = next_token(params, config, row, length)
    return row[len(prompt) : len(prompt) + NEW].tolist()


def by_transformers(model: object, prompt: np.ndarray) -> list[int]:
    import torch

    ids = torch.from_numpy(prompt).long()[None]
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[attr-defined]
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "case",
    ["llama-3", "mistral", "qwen3-windows", "gemma2", "gemma3", "olmo2", "phi3-windows", "qwen3-yarn-biases"],
)
def test_same_tokens_without_a_cache_and_by_transformers(case: str, tmp_path: Path) -> None:
    # A random tied head says the last token again and again.
    theirs = make_model(tmp_path, CASES[case] | {"tie_word_embeddings": False})
    theirs.save_pretrained(tmp_path)
    config = ModelConfig.from_hf(tmp_path)
    params = load_params(tmp_path, config)
    expected = [without_cache(params, config, prompt) for prompt in PROMPTS]
    assert any(len(set(answer)) > 2 for answer in expected), "something to get wrong"
    assert case in ("llama-3", "olmo2", "qwen3-yarn-biases") or WINDOW in config.windows
    assert [by_transformers(theirs, prompt) for prompt in PROMPTS] == expected
    together = generate(params, config, PROMPTS, GenerationSettings(eos_ids=(), max_new_tokens=NEW))
    assert [answer.tolist() for answer in together] == expected


@pytest.mark.parametrize("case", ["phi3-long", "llama-dynamic-rope"])
def test_frequencies_by_length(case: str, tmp_path: Path) -> None:
    """A prompt beyond the positions of pre-training."""
    theirs = make_model(tmp_path, CASES[case] | {"tie_word_embeddings": False})
    theirs.save_pretrained(tmp_path)
    config = ModelConfig.from_hf(tmp_path)
    # One prompt: a model of transformers remembers the longest row, and would scale a second prompt by it.
    prompts = [np.random.default_rng(1).integers(3, VOCAB, 40, dtype=np.int32)]
    found = generate(
        load_params(tmp_path, config), config, prompts, GenerationSettings(eos_ids=(), max_new_tokens=NEW)
    )
    assert [answer.tolist() for answer in found] == [by_transformers(theirs, prompt) for prompt in prompts]
