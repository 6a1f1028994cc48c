"""Options of LoRA against peft: chosen layers, excluded modules, the first weights, and LoRA+."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file

from jora_core.architecture.tensor_names import lora_tensor_name
from jora_core.base.errors import InputError
from jora_core.model.decoder import forward, unembed
from jora_core.model.embedding_noise import embedding_noise
from jora_core.parameters.initialize import init_adapter
from jora_core.parameters.lora_math import adapted, low_rank
from jora_core.parameters.trees import Adapter, LoraWeights
from jora_core.specs.adapter_targets import lora_targets
from jora_core.specs.train import OptimSpec
from jora_core.training.optimizer import make_optimizer
from jora_core.weights.adapter_folder import load_adapter, save_adapter
from tests.jora_core.peft_cases import (
    assert_same_logits,
    busy_adapter,
    made_by_peft,
    ours,
    read_by_peft,
    spec_of,
    theirs,
    tokens,
)


def only(adapter: Adapter, layer: int) -> Adapter:
    """The adapter with zeros in all other layers."""
    mask = (np.arange(2) == layer).astype(np.float32)[:, None, None]
    return jax.tree.map(lambda leaf: leaf * mask, adapter)


def test_chosen_layers_are_those_of_peft(bases: Any, tmp_path: Path) -> None:
    base = bases("llama")
    spec = spec_of(layers_to_transform=1)
    fresh = init_adapter(base.config, spec, jax.random.key(0))
    for pair in fresh.weights.values():
        assert not pair.a[0].any() and pair.a[1].any()
    adapter = only(busy_adapter(base, spec), 1)
    save_adapter(adapter, tmp_path / "ours", spec, "base")
    assert all(".layers.1." in name for name in load_file(tmp_path / "ours" / "adapter_model.safetensors"))
    assert_same_logits(ours(base, adapter), theirs(read_by_peft(base, tmp_path / "ours")))
    again, found = load_adapter(tmp_path / "ours", base.config)
    assert found.layers_to_transform == [1]
    jax.tree.map(np.testing.assert_array_equal, again.weights, adapter.weights)
    model = made_by_peft(base, tmp_path / "theirs", layers_to_transform=[0])
    read, found = load_adapter(tmp_path / "theirs", base.config)
    assert found.layers_to_transform == [0] and not read.weights["q_proj"].b[1].any()
    assert_same_logits(ours(base, read), theirs(model))


def test_a_layer_without_an_adapter_is_not_trained() -> None:
    """With A and B zero both gradients are zero, so weights, moments and decay stay zero."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 8), (6, 8)))
    pair = LoraWeights(a=jnp.zeros((3, 8)), b=jnp.zeros((6, 3)))

    def loss(pair: LoraWeights) -> jax.Array:
        return jnp.sum(adapted(x @ weight.T, low_rank(x, pair), weight, pair, 2.0) ** 2)

    grads = jax.grad(loss)(pair)
    assert not grads.a.any() and not grads.b.any()


def test_excluded_modules_and_layers_of_the_model(bases: Any) -> None:
    config = bases("llama").config
    spec = spec_of(target_modules="all-linear", exclude_modules=["q_proj", "gate_proj"])
    assert set(lora_targets(spec, config)) == {"k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    with pytest.raises(InputError, match=r"lora\.rank_pattern: 'q_prj' matches no module with an adapter"):
        init_adapter(config, spec_of(rank_pattern={"q_prj": 4}), jax.random.key(0))
    with pytest.raises(InputError, match="the model has no layer 2; its last is 1"):
        lora_targets(spec_of(layers_to_transform=[2]), config)


def test_gaussian_first_weights(bases: Any) -> None:
    config = bases("llama").config
    spec = spec_of(r=4, init_lora_weights="gaussian")
    a = init_adapter(config, spec, jax.random.key(0)).weights["q_proj"].a
    # peft: a normal distribution with deviation 1 / r. 256 values.
    assert np.std(a) == pytest.approx(1 / 4, rel=0.15) and abs(np.mean(a)) < 0.06


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"init_lora_weights": "ones"}, "init_lora_weights"),
        ({"layers_to_transform": [1], "use_dora": True}, "layers_to_transform is for LoRA"),
        ({"layers_to_transform": []}, "at least 1 item"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj"),
        ({"alpha_pattern": {"(q": 1}}, "is no regular expression"),
    ],
)
def test_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec_of(**changes)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_noise_on_embeddings_is_that_of_transformers(
    bases: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bound, and the same logits with the same draws."""
    from transformers.integrations.neftune import activate_neftune

    base, alpha, ids = bases(family), 5.0, tokens()
    key, shape = jax.random.key(3), (*ids.shape, base.config.hidden_size)
    noise = np.asarray(embedding_noise(jnp.zeros(shape), alpha, ids.shape[1], key))
    bound = alpha / (ids.shape[1] * base.config.hidden_size) ** 0.5
    assert 0.99 * bound < np.abs(noise).max() <= bound
    assert np.std(noise) == pytest.approx(bound / 3**0.5, rel=0.03)
    model = base.theirs().train()
    activate_neftune(model, alpha)

    def draw(values: Any, low: Any, high: Any) -> Any:
        assert float(high) == pytest.approx(bound) and float(low) == pytest.approx(-bound)
        return torch.from_numpy(noise.copy())

    monkeypatch.setattr(torch.Tensor, "uniform_", draw)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long()).logits.float().numpy()
    places = (
        jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape),
        jnp.full_like(jnp.asarray(ids), ids.shape[1]),
    )
    hidden = forward(base.params, base.config, jnp.asarray(ids), *places, noise=(alpha, key))
    assert_same_logits(np.asarray(unembed(base.params, base.config, hidden)), expected)
    assert np.abs(expected - ours(base, None)).max() > 0.01


def test_loraplus_equals_pefts(bases: Any, tmp_path: Path) -> None:
    from peft.optimizers import create_loraplus_optimizer

    base, spec = bases("llama"), spec_of()
    optim = OptimSpec(loraplus_lr_ratio=8, weight_decay=0.1, max_grad_norm=1e9)
    adapter = busy_adapter(base, spec)
    save_adapter(adapter, tmp_path, spec, "base")
    model = read_by_peft(base, tmp_path, trainable=True)
    settings = {"lr": 1e-2, "loraplus_weight_decay": 0.1}
    torch_optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, loraplus_lr_ratio=8, **settings)
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(optim, optax.constant_schedule(1e-2))
    state = optimizer.init(adapter)
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), adapter)
        for target, pair in grads.weights.items():
            for part, stacked in (("A", pair.a), ("B", pair.b)):
                for layer, value in enumerate(stacked):
                    named[lora_tensor_name(layer, target, part)].grad = torch.from_numpy(value.copy())
        torch_optimizer.step()
        changes, state = optimizer.update(grads, state, adapter)
        adapter = cast("Adapter", optax.apply_updates(adapter, changes))
    for target, pair in adapter.weights.items():
        for part, stacked in (("A", pair.a), ("B", pair.b)):
            for layer, value in enumerate(stacked):
                wanted = named[lora_tensor_name(layer, target, part)].detach().numpy()
                # Each step moves a value by up to 0.08.
                np.testing.assert_allclose(value, wanted, rtol=2e-5, atol=5e-6)
