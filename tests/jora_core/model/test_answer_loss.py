from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.batches import BatchStream
from jora_core.data.examples import load_groups
from jora_core.data.shared_context import Group
from jora_core.data.tokenizer import load_tokenizer
from jora_core.model import answer_loss
from jora_core.model.answer_loss import batch_loss, cross_entropy, target_logprobs
from jora_core.model.decoder import forward, unembed
from jora_core.parameters.initialize import init_adapter, init_params
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.data import DataSpec
from jora_core.specs.lora import LoraSpec
from jora_core.training.train_step import BATCH_ARRAYS


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [1 << 24, 200], ids=["whole", "chunks of 4"])
def test_cross_entropy_and_its_gradients_equal_optax(monkeypatch, softcap, chunk):
    monkeypatch.setattr(answer_loss, "_CHUNK_LOGITS", chunk)
    config = ModelConfig(50, 16, 8, 1, 2, 2, 8, logit_softcap=softcap)
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (14, 16)), jax.random.normal(keys[1], (50, 16))
    targets = jax.random.randint(keys[2], (14,), 0, 50)
    weights = jax.random.uniform(keys[3], (14,))

    def logits(h, w):
        z = h @ w.T
        return z if softcap is None else softcap * jnp.tanh(z / softcap)

    def reference(h, w):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(h, w), targets)
        return 2 * jnp.sum(weights * losses)

    def ours(h, w, trained=True):
        return 2 * cross_entropy(h, w, targets, weights, config, head_trained=trained)

    expected, grads = jax.value_and_grad(reference, (0, 1))(hidden, head)
    for found in (jax.jit(ours)(hidden, head), jax.value_and_grad(ours)(hidden, head)[0]):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for got, wanted in zip(jax.grad(ours, (0, 1))(hidden, head), grads, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    frozen = jax.grad(lambda h: ours(h, head, trained=False))(hidden)
    np.testing.assert_allclose(frozen, grads[0], rtol=1e-5, atol=1e-6)

    params = dataclasses.replace(init_params(config, jax.random.key(0)), head=head)
    # Several targets at a position, and none at others.
    at, wanted = (jax.random.randint(keys[2], (2, 9), 0, n) for n in (7, len(head)))
    found = target_logprobs(params, config, hidden.reshape(2, 7, 16), at, wanted)
    every = jax.nn.log_softmax(logits(hidden, head)).reshape(2, 7, -1)
    np.testing.assert_allclose(found, every[np.arange(2)[:, None], at, wanted], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def model(tiny_model) -> tuple[ModelConfig, Params, Adapter]:
    config = ModelConfig.from_hf(tiny_model)
    adapter = init_adapter(config, LoraSpec(r=4, lora_dropout=0.0), jax.random.key(1))
    # B starts at zero, where every adapter is the same: move it.
    adapter = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(2), x.shape), adapter)
    return config, init_params(config, jax.random.key(0)), adapter


def packed_loss(config: ModelConfig, params: Params, adapter: Adapter, groups: tuple[Group, ...]) -> Any:
    """Summed loss over one epoch of packed batches, and the adapter's gradients."""
    stream = BatchStream(groups, 512, seed=0)

    @jax.jit
    def one(p, a, arrays):
        return jax.value_and_grad(lambda a: batch_loss(p, config, arrays, adapter=a, dropout_key=None))(a)

    batches = [stream.build(plan) for plan in stream.plan(0)]
    found = [one(params, adapter, {name: getattr(b, name) for name in BATCH_ARRAYS}) for b in batches]
    return jax.tree.map(lambda *parts: sum(parts), *found)


def slow_loss(config: ModelConfig, params: Params, adapter: Adapter, groups: tuple[Group, ...]) -> Any:
    """The same with each example in a row of its own and logits everywhere: no packing, no gathering."""
    pieces = [piece for group in groups for _, piece in group.branches]
    longest = max(map(len, pieces))
    tokens = np.zeros((len(groups), longest), np.int32)
    weights = np.zeros((len(groups), longest), np.float32)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece)] = piece.tokens
        weights[row, : len(piece)] = piece.weights
    positions = np.tile(np.arange(longest), (len(groups), 1))

    def loss(p, a):
        hidden = forward(p, config, tokens, positions, np.full_like(tokens, longest), adapter=a)
        logits = unembed(p, config, hidden)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.sum(losses * weights[:, 1:])

    return jax.jit(jax.value_and_grad(loss, argnums=1))(params, adapter)


def load(path: Path, tiny_model: Path, sharing: str) -> tuple[Group, ...]:
    spec = DataSpec.model_validate(
        {"records": path, "max_seq_len": 128, "tokens_per_batch": 512, "sharing": sharing}
    )
    return load_groups(spec, load_tokenizer(tiny_model)).train


def test_packed_equals_one_by_one_and_shared_equals_apart(
    model, tiny_model, alpaca_rows, write_rows, tmp_path
):
    """No example sees another, and sharing a prefix changes neither the loss nor any gradient."""
    config, params, adapter = model
    path = write_rows(tmp_path / "r.parquet", alpaca_rows(contexts=4, questions=3))
    apart, shared = load(path, tiny_model, "off"), load(path, tiny_model, "auto")
    assert sum(g.slots for g in shared) < 0.7 * sum(g.slots for g in apart)

    reference = slow_loss(config, params, adapter, apart)
    for groups in (apart, shared):
        found = packed_loss(config, params, adapter, groups)
        np.testing.assert_allclose(found[0], reference[0], rtol=2e-6)
        for ours, theirs in zip(jax.tree.leaves(found[1]), jax.tree.leaves(reference[1]), strict=True):
            scale = float(jnp.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, atol=2e-5 * scale)


def test_a_change_in_one_example_leaves_the_others_loss(model, tiny_model, alpaca_rows, write_rows, tmp_path):
    config, params, adapter = model
    rows = alpaca_rows(contexts=1, questions=3)
    path = write_rows(tmp_path / "r.parquet", rows)
    (group,) = load(path, tiny_model, "auto")
    stream = BatchStream([group], 512, seed=0)
    batch = stream.build(stream.plan(0)[0])
    arrays = {name: jnp.asarray(getattr(batch, name)) for name in BATCH_ARRAYS}
    slots = np.arange(batch.tokens.size).reshape(batch.tokens.shape)
    start = group.slots - (len(group.branches[2].piece) - 1)
    third = (slots >= start) & (slots < group.slots)
    arrays["weights"] = jnp.where(third.reshape(1, -1)[0, arrays["index"]], 0.0, arrays["weights"])
    changed = arrays | {"tokens": jnp.where(third, 9, arrays["tokens"])}
    loss = jax.jit(lambda a: batch_loss(params, config, a, adapter=adapter, dropout_key=None))
    before, after = float(loss(arrays)), float(loss(changed))
    assert before > 0 and before == after
