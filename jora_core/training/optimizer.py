"""AdamW with clipping, warm-up and decay, its state in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jora_core.specs.train import OptimSpec

Schedule = Callable[[Any], Any]


def make_schedule(spec: OptimSpec, steps: int) -> Schedule:
    """Learning rate of a step, counted from 0: linear warm-up, then decay to `min_lr_ratio` of the peak.

    The first step already learns (rate peak/warm-up), and the last step has the final rate.
    """
    warmup = math.ceil(spec.warmup_ratio * steps)
    decay = max(steps - warmup - 1, 1)
    floor = spec.min_lr_ratio

    def rate(step: Any) -> Any:
        done = jnp.clip((step - warmup) / decay, 0.0, 1.0)
        if spec.schedule == "cosine":
            share = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif spec.schedule == "linear":
            share = floor + (1 - floor) * (1 - done)
        else:
            share = jnp.ones_like(done)
        rising = (step + 1) / max(warmup, 1)
        return spec.learning_rate * jnp.where(step < warmup, rising, share)

    return rate


def make_optimizer(spec: OptimSpec, schedule: Schedule) -> optax.GradientTransformation:
    """AdamW as in Loshchilov and Hutter (arXiv:1711.05101) after clipping by the global norm.

    Weight decay leaves norms out: they scale a normed vector, and pulling them to zero only fights the data.
    """
    return optax.chain(
        optax.clip_by_global_norm(spec.max_grad_norm),
        optax.adamw(
            schedule,
            b1=spec.beta1,
            b2=spec.beta2,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            mask=decayed,
        ),
    )


def decayed(tree: Any) -> Any:
    """A tree of bools: which leaves weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), tree)
