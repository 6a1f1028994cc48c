"""AdamW with gradient clipping and a learning-rate schedule, built from optax, with float32 state."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jora_core.specs.train import OptimSpec


def make_schedule(spec: OptimSpec, steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, then decay to `min_lr_ratio` of the peak.

    With w warm-up steps, the first step has 1/w of the peak rate. The last step has the final rate.

    Args:
        spec: peak rate, kind of decay, and shares of warm-up and final rate.
        steps: number of steps of the run; the schedule counts from 0.
    """
    warmup = math.ceil(spec.warmup_ratio * steps)
    # Minus 1: steps count from 0, and the last one, steps - 1, has the final rate.
    decay_steps = max(steps - warmup - 1, 1)
    final = spec.min_lr_ratio

    # optax's schedules give the same rates, but round some of them differently in the last bit: adapters of
    # earlier versions could not be reproduced bit for bit. A test compares both.
    def rate(step: Any) -> jax.Array:
        done = jnp.clip((step - warmup) / decay_steps, 0.0, 1.0)
        if spec.schedule == "cosine":
            share = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif spec.schedule == "linear":
            share = final + (1 - final) * (1 - done)
        else:
            share = jnp.ones_like(done)
        rising = (step + 1) / max(warmup, 1)
        return spec.learning_rate * jnp.where(step < warmup, rising, share)

    return rate


def make_optimizer(spec: OptimSpec, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter, arXiv:1711.05101) with gradients clipped by their global norm.

    With LoRA+ (arXiv:2402.12354), B and DoRA's magnitudes learn at a multiple of the rate, as in peft.

    Norm weights are not decayed: they scale a normalized vector, so decay to zero is no regularization.
    """
    parts = [
        optax.clip_by_global_norm(spec.max_grad_norm),
        optax.adamw(
            schedule,
            b1=spec.beta1,
            b2=spec.beta2,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            mask=decayed,
        ),
    ]
    # Behind AdamW, whose update is proportional to the rate. No part without the ratio: the state of earlier
    # checkpoints keeps its shape.
    if spec.loraplus_lr_ratio != 1:
        parts.append(optax.masked(optax.scale(spec.loraplus_lr_ratio), faster))
    return optax.chain(*parts)


def faster(tree: Any) -> Any:
    """Return a tree of bools, True for the leaves of an adapter whose rate is LoRA+'s: all but A."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not jax.tree_util.keystr(path).endswith(".a"), tree
    )


def decayed(tree: Any) -> Any:
    """Return a tree of bools, True for the leaves to which weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), tree)
