"""Every family against transformers, beyond its rope threshold and past its windows."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.model.decoder import forward, pick_positions, unembed
from jora_core.parameters.trees import Params
from jora_core.weights.checkpoint_folder import save_params
from jora_core.weights.load_params import load_params
from tests.jora_core.family_cases import CASES, FAMILY_CASES, LENGTH, VOCAB, WINDOW, make_model, their_logits
from tests.jora_core.trees import until_of

# Largest difference of a logit, as a share of the largest logit.
TOLERANCE = 2e-4


@partial(jax.jit, static_argnums=1)
def logits_of_slots(params: Params, config: ModelConfig, slots: jax.Array) -> jax.Array:
    """Logits of slots [B, T, 3]: token, position, until."""
    return unembed(params, config, forward(params, config, *(slots[..., i] for i in range(3))))


def plain(tokens: np.ndarray, segment: int = 1) -> np.ndarray:
    """Slots [T, 4] of one example: token, position, segment, suffix."""
    return np.stack([tokens, np.arange(len(tokens)), np.full(len(tokens), segment), 0 * tokens], axis=-1)


def rows(*examples: np.ndarray) -> np.ndarray:
    """Slots [B, LENGTH, 3] (token, position, until), padded."""
    slots = np.stack([np.pad(row, ((0, LENGTH - len(row)), (0, 0))) for row in examples]).astype(np.int32)
    return np.stack([slots[..., 0], slots[..., 1], until_of(slots[..., 2], slots[..., 3])], axis=-1)


def our_logits(params: Params, config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(logits_of_slots(params, config, rows(*map(plain, tokens))))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, VOCAB, (2, LENGTH))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A maker of (folder, transformers model) of a case, made once."""
    made: dict[str, tuple[Path, Any]] = {}

    def make(case: str) -> tuple[Path, Any]:
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            model = make_model(folder, CASES[case])
            model.save_pretrained(folder)
            made[case] = folder, model
        return made[case]

    return make


@pytest.mark.parametrize("case", CASES)
def test_same_logits_as_transformers(saved: Any, tokens: np.ndarray, case: str) -> None:
    folder, theirs = saved(case)
    config = ModelConfig.from_hf(folder)
    assert config == ModelConfig.from_fields(CASES[case])  # transformers 5 wrote the folder's config.json
    expected = their_logits(theirs, tokens)
    assert_close(our_logits(load_params(folder, config), config, tokens), expected)


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_some_positions_are_those_of_all(saved: Any, tokens: np.ndarray, case: str) -> None:
    """The end of the last layer at given slots only, beside the same slots of the whole computation."""
    folder, _ = saved(case)
    config = ModelConfig.from_hf(folder)
    params = load_params(folder, config)
    slots = rows(*map(plain, tokens))
    places = {name: slots[..., i] for i, name in enumerate(("tokens", "positions", "until"))}
    index = np.asarray([[0, 5, LENGTH - 1, LENGTH, 2 * LENGTH - 2]], np.int32)
    found = jax.jit(partial(forward, config=config))(params, **places, index=index)
    whole = jax.jit(partial(forward, config=config))(params, **places)
    assert_close(np.asarray(found), np.asarray(pick_positions(whole, index, LENGTH)))


@pytest.mark.parametrize("case", FAMILY_CASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_and_sharded_files(
    saved: Any, tokens: np.ndarray, tmp_path: Path, case: str, dtype: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    make_model(tmp_path, CASES[case]).to(getattr(torch, dtype)).save_pretrained(
        tmp_path, max_shard_size="100KB"
    )
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").is_file()
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config = ModelConfig.from_hf(tmp_path)
    assert_close(our_logits(load_params(tmp_path, config), config, tokens), their_logits(theirs, tokens))


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_transformers_reads_what_we_write(saved: Any, tokens: np.ndarray, tmp_path: Path, case: str) -> None:
    from transformers import AutoModelForCausalLM

    folder, theirs = saved(case)
    config = ModelConfig.from_hf(folder)
    save_params(load_params(folder, config), config, tmp_path)
    assert ModelConfig.from_hf(tmp_path) == config
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(again) is type(theirs)
    np.testing.assert_array_equal(their_logits(again, tokens), their_logits(theirs, tokens))
    index = json.loads((tmp_path / "config.json").read_text())
    assert index["architectures"] == CASES[case]["architectures"]


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("llama-3", {"rope_scaling": None}),
        ("mistral", {"windows": (0, 7, 7)}),
        ("mistral", {"windows": (8, 8, 8)}),
        ("gemma2", {"windows": ()}),
        ("gemma2", {"attention_softcap": None}),
        ("gemma2", {"logit_softcap": None}),
        ("gemma2", {"attention_scale": None}),
        ("gemma", {"embedding_scale": None}),
        ("gemma", {"norm_offset": False}),
        ("gemma", {"activation": "silu"}),
        ("gemma3", {"local_rope_theta": None}),
        ("gemma3", {"local_rope_theta": 5000.0}),
        ("gemma3", {"rope_scaling": None}),
        ("gemma3", {"windows": (7, 7, 7, 7, 7, 0, 0)}),
        ("olmo2", {"norm_eps": 0.5}),
        ("phi3-windows", {"windows": ()}),
    ],
    ids=str,
)
def test_each_part_counts(saved: Any, tokens: np.ndarray, case: str, changes: dict[str, Any]) -> None:
    """What the comparison above would see if one part of the decoder were left out."""
    folder, theirs = saved(case)
    config = ModelConfig.from_hf(folder)
    found = our_logits(load_params(folder, config), dataclasses.replace(config, **changes), tokens)
    expected = their_logits(theirs, tokens)
    assert np.abs(found - expected).max() > 10 * TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("case", ["mistral", "qwen3-windows", "gemma2", "gemma3"])
def test_packed_examples_under_windows(saved: Any, tokens: np.ndarray, case: str) -> None:
    folder, _ = saved(case)
    config = ModelConfig.from_hf(folder)
    params = load_params(folder, config)
    first, second = tokens[0, :25], tokens[1, :19]
    packed = rows(np.concatenate([plain(first), plain(second, 2)]), plain(second))
    together = np.asarray(logits_of_slots(params, config, packed))
    apart = np.asarray(logits_of_slots(params, config, rows(plain(first), plain(second))))
    assert_close(together[0, :25], apart[0, :25])
    assert_close(together[0, 25:44], apart[1, :19])
    assert_close(together[1, :19], apart[1, :19])


def test_a_packed_example_keeps_the_frequencies_of_its_own_length(saved: Any, tokens: np.ndarray) -> None:
    folder, _ = saved("llama-longrope")
    config = ModelConfig.from_hf(folder)
    params = load_params(folder, config)
    long, short = tokens[0, :42], tokens[1, :6]
    packed = np.concatenate([plain(long), plain(short, segment=2)])
    together = np.asarray(logits_of_slots(params, config, rows(packed, plain(long))))
    apart = np.asarray(logits_of_slots(params, config, rows(plain(long), plain(short))))
    assert_close(together[0, :42], apart[0, :42])
    assert_close(together[0, 42:], apart[1, :6])


@pytest.mark.parametrize("case", ["mistral", "gemma3"])
def test_suffixes_of_a_prefix_under_windows(saved: Any, tokens: np.ndarray, case: str) -> None:
    """A window counts positions, not slots: the last suffix lies far from its prefix in the row."""
    folder, _ = saved(case)
    config = ModelConfig.from_hf(folder)
    params = load_params(folder, config)
    prefix, suffixes = tokens[0, :12], [tokens[1, i : i + 4 + i // 9] for i in (0, 9, 18)]
    parts = [plain(prefix)]
    for number, suffix in enumerate(suffixes, 1):
        slots = plain(suffix)
        slots[:, 1] += len(prefix)
        slots[:, 3] = number
        parts.append(slots)
    assert len(prefix) > WINDOW
    row = rows(np.concatenate(parts), plain(prefix))
    shared = np.asarray(logits_of_slots(params, config, row))[0]
    wholes = [rows(plain(np.concatenate([prefix, suffix])), plain(prefix)) for suffix in suffixes]
    start = len(prefix)
    for suffix, whole in zip(suffixes, wholes, strict=True):
        expected = np.asarray(logits_of_slots(params, config, whole))[0]
        assert_close(shared[start : start + len(suffix)], expected[len(prefix) : len(prefix) + len(suffix)])
        start += len(suffix)


@pytest.mark.parametrize("case", ["qwen2", "gemma3"])
def test_bfloat16_computation_stays_close(saved: Any, tokens: np.ndarray, case: str) -> None:
    folder, theirs = saved(case)
    config = ModelConfig.from_hf(folder)
    found = our_logits(load_params(folder, config, jnp.bfloat16), config, tokens)
    assert np.corrcoef(found.ravel(), their_logits(theirs, tokens).ravel())[0, 1] > 0.995


@pytest.mark.parametrize("case", ["qwen2-windows", "gemma2", "gemma3"])
def test_cached_generation_past_windows(saved: Any, tokens: np.ndarray, case: str) -> None:
    """Prompts of two lengths in one batch, the shorter one padded, each continued beyond its window."""
    import torch

    folder, theirs = saved(case)
    config = ModelConfig.from_hf(folder)
    prompts = [tokens[0, :20].astype(np.int32), tokens[1, :4].astype(np.int32)]
    limits = GenerationSettings(eos_ids=(), max_new_tokens=10)
    found = generate(load_params(folder, config), config, prompts, limits)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt).long()[None]
        settings = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": None, "pad_token_id": 0}
        with torch.no_grad():
            whole = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        assert answer.tolist() == whole[0, len(prompt) :].tolist()
