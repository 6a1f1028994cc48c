"""The decoder against transformers, and the mask rule against computing every example apart."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.model.decoder import forward, swiglu, unembed
from jora_core.model.dropout import dropout
from jora_core.parameters.initialize import init_params
from jora_core.parameters.trees import Adapter, LoraWeights, Params
from jora_core.weights.load_params import load_params
from tests.jora_core.trees import until_of

CONFIG = ModelConfig(97, 32, 48, 2, 4, 2, 8, initializer_range=0.2)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def params() -> Params:
    return jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    keys = iter(jax.random.split(jax.random.key(5), 4))
    weights = {
        name: LoraWeights(
            a=0.3 * jax.random.normal(next(keys), (2, 3, 32)), b=jax.random.normal(next(keys), (2, width, 3))
        )
        for name, width in (("q_proj", 32), ("v_proj", 16))
    }
    return Adapter(weights=weights, scale=0.5, dropout=0.25)


def run(params: Params, rows: list[list[tuple[int, int, int, int]]], **options: Any) -> jax.Array:
    """Logits of rows given as (token, position, segment, suffix) per slot, padded to the longest."""
    length = max(map(len, rows))
    slots = np.asarray([row + [(0, 0, 0, 0)] * (length - len(row)) for row in rows], np.int32)
    slots = np.stack([slots[..., 0], slots[..., 1], until_of(slots[..., 2], slots[..., 3])], axis=-1)
    return logits(params, CONFIG, slots, **options)


@partial(jax.jit, static_argnums=1, static_argnames="remat")
def logits(params: Params, config: ModelConfig, slots: jax.Array, **options: Any) -> jax.Array:
    hidden = forward(params, config, *(slots[..., i] for i in range(3)), **options)
    return unembed(params, config, hidden)


def plain(tokens: list[int], segment: int = 1) -> list[tuple[int, int, int, int]]:
    return [(token, i, segment, 0) for i, token in enumerate(tokens)]


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False, "num_key_value_heads": 4, "head_dim": 16},
        {"num_key_value_heads": 1, "rope_parameters": LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}},
    ],
    ids=["tied", "untied-wide-heads", "llama3-rope", "linear-rope"],
)
def test_same_logits_as_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    theirs = LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()
    theirs.save_pretrained(tmp_path)
    config = ModelConfig.from_hf(tmp_path)
    ours = load_params(tmp_path, config)
    assert (ours.head is None) == changes.get("tie_word_embeddings", False)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 80), dtype=np.int32)
    positions = np.broadcast_to(np.arange(80, dtype=np.int32), tokens.shape)
    got = logits(ours, config, np.stack([tokens, positions, np.full_like(tokens, 80)], axis=-1))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_packed_examples_do_not_see_one_another(params: Params) -> None:
    first, second = [5, 6, 7, 8, 9], [11, 12, 13]
    packed = run(params, [plain(first) + plain(second, 2), plain(second)])
    apart = run(params, [plain(first)]), run(params, [plain(second)])
    np.testing.assert_allclose(packed[0, :5], apart[0][0], atol=1e-5)
    np.testing.assert_allclose(packed[0, 5:], apart[1][0], atol=1e-5)
    np.testing.assert_allclose(packed[1, :3], apart[1][0], atol=1e-5)


def test_suffixes_of_a_prefix_equal_whole_examples(params: Params, adapter: Adapter) -> None:
    prefix, suffixes = [5, 6, 7, 8], [[20, 21], [30, 31, 32], [40]]
    row = plain(prefix)
    for number, suffix in enumerate(suffixes, 1):
        row += [(token, 4 + i, 1, number) for i, token in enumerate(suffix)]
    shared = run(params, [row], adapter=adapter)[0]
    start = 4
    for suffix in suffixes:
        whole = run(params, [plain(prefix + suffix)], adapter=adapter)[0]
        np.testing.assert_allclose(shared[:4], whole[:4], atol=1e-5)
        np.testing.assert_allclose(shared[start : start + len(suffix)], whole[4:], atol=1e-5)
        start += len(suffix)


def test_gradients_of_shared_and_apart_are_equal(params: Params, adapter: Adapter) -> None:
    shared = plain([5, 6, 7]) + [(20, 3, 1, 1), (21, 4, 1, 1), (30, 3, 1, 2), (31, 4, 1, 2)]

    def loss(trees: tuple[Params, Adapter], rows: Any, slots: list[tuple[int, int]]) -> jax.Array:
        values = run(trees[0], rows, adapter=trees[1])
        return sum((jax.nn.log_softmax(values[row, slot])[3] for row, slot in slots), jnp.zeros(()))

    def grad(rows: Any, slots: list[tuple[int, int]]) -> Any:
        return jax.jit(jax.grad(lambda trees: loss(trees, rows, slots)))((params, adapter))

    one = grad([shared], [(0, 3), (0, 4), (0, 5), (0, 6)])
    apart = [plain([5, 6, 7, 20, 21]), plain([5, 6, 7, 30, 31])]
    two = grad(apart, [(0, 3), (0, 4), (1, 3), (1, 4)])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_padding_is_finite_in_both_directions(params: Params) -> None:
    def loss(params: Params) -> jax.Array:
        return (run(params, [plain([5, 6, 7]), [(0, 0, 0, 0)]]) ** 2).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.fixture(scope="module")
def kept_gradients(params: Params, adapter: Adapter) -> Any:
    return gradients(params, adapter, "none")


def gradients(params: Params, adapter: Adapter, remat: Any) -> Any:
    def loss(adapter: Adapter) -> jax.Array:
        key = jax.random.key(1)
        return (run(params, [plain([5, 6, 7, 8])], adapter=adapter, dropout_key=key, remat=remat) ** 2).mean()

    return jax.jit(jax.grad(loss))(adapter)


@pytest.mark.parametrize("remat", ["dots", "attention", "full", "offload"])
def test_recomputing_changes_nothing(
    params: Params, adapter: Adapter, kept_gradients: Any, remat: Any
) -> None:
    again = gradients(params, adapter, remat)
    for a, b in zip(jax.tree.leaves(kept_gradients), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_dropout_is_on_with_a_key_only_and_follows_it(params: Params, adapter: Adapter) -> None:
    rows = [plain([5, 6, 7, 8])]
    off = run(params, rows, adapter=adapter)
    without = run(params, rows, adapter=replace(adapter, dropout=0.0), dropout_key=jax.random.key(1))
    np.testing.assert_array_equal(off, without)
    one, same, other = (run(params, rows, adapter=adapter, dropout_key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - off).max() > 1e-3
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("width", [64, 65])
def test_dropout_keeps_the_mean(width: int) -> None:
    x = jnp.ones((4, 100, width))
    dropped = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    assert not (dropped[0] == dropped[1]).all()
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.9)}
    assert abs((dropped == 0).mean() - 0.1) < 0.01


def test_gated_unit_has_the_gradient_of_its_formula() -> None:
    gate, up = jax.random.normal(jax.random.key(0), (2, 50)) * 4
    expected = jax.grad(lambda g, u: (jnp.sin(jax.nn.silu(g) * u)).sum(), (0, 1))(gate, up)
    got = jax.grad(lambda g, u: (jnp.sin(swiglu(g, u))).sum(), (0, 1))(gate, up)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_close(params: Params) -> None:
    rows = [plain([5, 6, 7, 8])]
    wide = run(params, rows)
    narrow = run(jax.tree.map(lambda w: w.astype(jnp.bfloat16), params), rows)
    assert narrow.dtype == jnp.float32
    assert np.corrcoef(wide.ravel(), narrow.ravel())[0, 1] > 0.999
