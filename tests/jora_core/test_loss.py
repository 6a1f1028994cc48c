from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jora_core.batches import BatchStream
from jora_core.config import ModelConfig
from jora_core.data import load_groups
from jora_core.groups import Group
from jora_core.lora import Adapter, init_adapter
from jora_core.loss import batch_loss, weighted_cross_entropy
from jora_core.model import Params, forward, init_params, unembed
from jora_core.spec import DataSpec, LoraSpec
from jora_core.step import BATCH_ARRAYS
from jora_core.tokenize import load_tokenizer


def test_cross_entropy_and_its_gradient_equal_optax():
    key = jax.random.key(0)
    logits = 3 * jax.random.normal(key, (2, 7, 50))
    targets = jax.random.randint(key, (2, 7), 0, 50)
    weights = jax.random.uniform(key, (2, 7))

    def reference(x):
        return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(x, targets))

    ours = jax.value_and_grad(lambda x: 2 * weighted_cross_entropy(x, targets, weights))(logits)
    theirs = jax.value_and_grad(lambda x: 2 * reference(x))(logits)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def model(tiny_model) -> tuple[ModelConfig, Params, Adapter]:
    config = ModelConfig.from_hf(tiny_model)
    adapter = init_adapter(config, LoraSpec(r=4, lora_dropout=0.0), jax.random.key(1))
    # B starts at zero, where every adapter is the same: move it.
    adapter = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(2), x.shape), adapter)
    return config, init_params(config, jax.random.key(0)), adapter


def packed_loss(config: ModelConfig, params: Params, adapter: Adapter, groups: tuple[Group, ...]) -> Any:
    """Summed loss over one epoch of packed batches, and its gradients for weights and adapter."""
    stream = BatchStream(groups, 512, seed=0)

    @jax.jit
    def one(p, a, arrays):
        return jax.value_and_grad(
            lambda p, a: batch_loss(p, config, arrays, adapter=a, dropout_key=None), argnums=(0, 1)
        )(p, a)

    batches = [stream.build(plan) for plan in stream.plan(0)]
    found = [one(params, adapter, {name: getattr(b, name) for name in BATCH_ARRAYS}) for b in batches]
    return jax.tree.map(lambda *parts: sum(parts), *found)


def slow_loss(config: ModelConfig, params: Params, adapter: Adapter, groups: tuple[Group, ...]) -> Any:
    """The same with each example in a row of its own and logits everywhere: no packing, no gathering."""
    longest = max(len(g.prefix) for g in groups)
    tokens = np.zeros((len(groups), longest), np.int32)
    weights = np.zeros((len(groups), longest), np.float32)
    for row, group in enumerate(groups):
        tokens[row, : len(group.prefix)] = group.prefix.tokens
        weights[row, : len(group.prefix)] = group.prefix.weights
    ones = np.ones_like(tokens)
    positions = np.arange(longest)[None] * ones

    def loss(p, a):
        hidden = forward(p, config, tokens, positions, ones, 0 * ones, adapter=a)
        logits = unembed(p, config, hidden)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.sum(losses * weights[:, 1:])

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, adapter)


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
    arrays["weights"] = jnp.where(
        (arrays["suffix_ids"].reshape(1, -1)[0, arrays["index"]] == 3), 0.0, arrays["weights"]
    )
    third = (arrays["suffix_ids"] == 3) & (arrays["segment_ids"] > 0)
    changed = arrays | {"tokens": jnp.where(third, 9, arrays["tokens"])}
    loss = jax.jit(lambda a: batch_loss(params, config, a, adapter=adapter, dropout_key=None))
    before, after = float(loss(arrays)), float(loss(changed))
    assert before > 0 and before == after
