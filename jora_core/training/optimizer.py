"""AdamW with gradient clipping and a learning-rate schedule, built from optax, with float32 state."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from jora_core.specs.train import OptimSpec


def make_schedule(spec: OptimSpec, steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, then decay to `min_lr_ratio` of the peak.

    With w warm-up steps, the first step has 1/w of the peak rate. The last step has the final rate.

    Args:
        spec: peak rate, kind of decay, and shares of warm-up and final rate.
        steps: number of steps of the run; the schedule counts from 0.
    """
    peak, final = spec.learning_rate, spec.learning_rate * spec.min_lr_ratio
    warmup = math.ceil(spec.warmup_ratio * steps)
    # Minus 1: steps count from 0, and the last one, steps - 1, has the final rate.
    decay_steps = max(steps - warmup - 1, 1)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=spec.min_lr_ratio),
        "linear": optax.linear_schedule(peak, final, decay_steps),
        "constant": optax.constant_schedule(peak),
    }[spec.schedule]
    if warmup == 0:
        return decay
    # optax logs a warning for a ramp of no steps, which a warm-up of one step is.
    ramp = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else decay
    # The second schedule counts its steps from the boundary on.
    return optax.join_schedules([ramp, decay], [warmup])


def make_optimizer(spec: OptimSpec, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter, arXiv:1711.05101) with gradients clipped by their global norm.

    Norm weights are not decayed: they scale a normalized vector, so decay to zero is no regularization.
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
    """Return a tree of bools, True for the leaves to which weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), tree)
