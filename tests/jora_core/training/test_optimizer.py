from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jora_core.specs.train import OptimSpec
from jora_core.training.optimizer import decayed, make_optimizer, make_schedule


@pytest.mark.parametrize("kind,last", [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)])
def test_schedule_rises_then_decays(kind, last):
    rate = make_schedule(OptimSpec(learning_rate=2.0, schedule=kind, warmup_ratio=0.1, min_lr_ratio=0.1), 100)
    values = [float(rate(jnp.asarray(step))) for step in range(100)]
    np.testing.assert_allclose(values[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert values[10] == pytest.approx(2.0) and values[99] == pytest.approx(2.0 * last)
    assert all(a >= b - 1e-7 for a, b in itertools.pairwise(values[10:]))


def test_cosine_equals_optax():
    ours = make_schedule(OptimSpec(learning_rate=1.0, warmup_ratio=0.0, min_lr_ratio=0.1), 51)
    theirs = optax.cosine_decay_schedule(1.0, 50, alpha=0.1)
    for step in range(51):
        assert float(ours(jnp.asarray(step))) == pytest.approx(float(theirs(step)), rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 7), (0.03, 20), (0.1, 100), (0.5, 3), (1.0, 5)])
def test_schedule_equals_its_formula(kind, warmup, steps):
    spec = OptimSpec(learning_rate=3e-4, schedule=kind, warmup_ratio=warmup, min_lr_ratio=0.1)
    ramp = int(np.ceil(warmup * steps))
    step = np.arange(steps)
    done = np.clip((step - ramp) / max(steps - ramp - 1, 1), 0, 1)
    share = {
        "cosine": 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * done)),
        "linear": 0.1 + 0.9 * (1 - done),
        "constant": np.ones(steps),
    }[kind]
    expected = 3e-4 * np.where(step < ramp, (step + 1) / max(ramp, 1), share)
    rate = make_schedule(spec, steps)
    np.testing.assert_allclose([float(rate(jnp.asarray(n))) for n in step], expected, rtol=1e-6)


def test_one_step_only():
    assert float(make_schedule(OptimSpec(), 1)(jnp.asarray(0))) == pytest.approx(1e-4)


def test_updates_equal_torch_adamw():
    torch = pytest.importorskip("torch")
    spec = OptimSpec(
        learning_rate=0.05, warmup_ratio=0.0, schedule="constant", weight_decay=0.1, max_grad_norm=0.5
    )
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    gradients = rng.normal(size=(10, 4, 3)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    torch_optimizer = torch.optim.AdamW([theirs], lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    ours = {"q_proj": jnp.asarray(start)}
    optimizer = make_optimizer(spec, make_schedule(spec, 10))
    state = optimizer.init(ours)
    for gradient in gradients:
        updates, state = optimizer.update({"q_proj": jnp.asarray(gradient)}, state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        torch_optimizer.step()
    np.testing.assert_allclose(ours["q_proj"], theirs.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_norms_are_not_decayed():
    assert decayed({"attention_norm": 0, "q_proj": 0}) == {"attention_norm": False, "q_proj": True}
