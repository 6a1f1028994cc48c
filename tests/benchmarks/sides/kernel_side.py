"""Attention alone for `gpu_suite`: the kernel for trees against dense attention, and its time beside others'.

A worker of `harness`: settings come on stdin, then requests. Not run by hand.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import serve
from training.kernel_launches import tree_row

from jora_core.model.attention_slots import Slots
from jora_core.model.blockwise_attention import blockwise_attention
from jora_core.model.cudnn_attention import cuda_capability, flash_attention
from jora_core.model.dense_attention import attention, example_mask
from jora_core.model.kernels.tree_attention import plan_trees, tree_attention

Attend = Callable[[jax.Array, jax.Array, jax.Array, Slots], jax.Array]
# Query heads, key/value heads, head width, window, soft-cap.
SHAPES = [
    (4, 4, 64, 0, None),
    (8, 2, 128, 0, None),
    (6, 2, 96, 200, None),
    (4, 2, 128, 200, 30.0),
    (4, 1, 256, 200, 50.0),
]


def both_passes(attend: Attend) -> Callable[..., tuple[jax.Array, ...]]:
    """Output and gradients of q, k and v of real slots."""

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array, slots: Slots) -> tuple:
        real = (slots.until > 0)[:, :, None, None]
        out, back = jax.vjp(lambda *x: attend(*x, slots), q, k, v)
        return jnp.where(real, out, 0), *back(jnp.where(real, grad, 0).astype(grad.dtype))

    return run


def arrays(length: int, heads: int, kv_heads: int, width: int, dtype: Any) -> tuple[jax.Array, ...]:
    """q, k, v and the gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(1, length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


def small_row(length: int) -> Slots:
    """A tree of a prefix and three branches, another example, and padding."""
    until, positions = np.zeros((2, 1, length), np.int32)
    prefix, branch = length // 3, length // 9
    end = prefix + 3 * branch
    until[0, :prefix], positions[0, :prefix] = end, np.arange(prefix)
    for number in range(3):
        start = prefix + number * branch
        until[0, start : start + branch] = start + branch
        positions[0, start : start + branch] = prefix + np.arange(branch)
    last = length - length // 7
    until[0, end:last], positions[0, end:last] = last, np.arange(last - end)
    return Slots(jnp.asarray(until), jnp.asarray(positions))


def build(settings: dict[str, Any]) -> dict[str, Any]:
    """Nothing to make: every request brings its own arrays."""
    interpret = settings["device"] != "gpu"

    def trees(dtype: Any, window: int = 0, softcap: float | None = None, width: int = 128) -> Attend:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array, slots: Slots) -> jax.Array:
            plan = plan_trees(slots, width, dtype, (window,), interpret=interpret)
            how = {"scale": width**-0.5, "softcap": softcap, "window": window}
            return tree_attention(q, k, v, plan, **how)

        return attend

    def check(shape: int, dtype: str, length: int) -> dict[str, Any]:
        """Largest differences from dense float32 attention, as shares of the largest values."""
        heads, kv_heads, width, window, softcap = SHAPES[shape]
        slots, inputs = small_row(length), arrays(length, heads, kv_heads, width, dtype)

        def dense(q: jax.Array, k: jax.Array, v: jax.Array, slots: Slots) -> jax.Array:
            mask = example_mask(slots, window)
            return attention(q, k, v, mask, scale=width**-0.5, softcap=softcap)

        with jax.default_matmul_precision("highest"):
            found = both_passes(trees(jnp.dtype(dtype), window, softcap, width))(*inputs, slots)
            exact = both_passes(dense)(*(x.astype(jnp.float32) for x in inputs), slots)
        gaps = [
            float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
            for a, b in zip(found, exact, strict=True)
        ]
        names = {"heads": heads, "kv_heads": kv_heads, "width": width, "window": window, "softcap": softcap}
        return {**names, "dtype": dtype, "gaps": gaps}

    def seconds(side: str, questions: int, repeats: int) -> dict[str, Any]:
        """Time of both passes over a row of 8,192 slots: contexts with questions, or one example if 0."""
        slots = jax.tree.map(jnp.asarray, tree_row(questions))
        inputs = arrays(slots.until.shape[1], 32, 32, 128, jnp.bfloat16)
        sides: dict[str, Attend] = {
            "kernel": trees(jnp.bfloat16),
            "blocks": lambda q, k, v, slots: blockwise_attention(q, k, v, slots, scale=128**-0.5),
            "cudnn": lambda q, k, v, slots: flash_attention(q, k, v, scale=128**-0.5),
        }
        run = both_passes(sides[side])
        jax.block_until_ready(run(*inputs, slots))
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(run(*inputs, slots))
            times.append(time.perf_counter() - began)
        return {"side": side, "questions": questions, "seconds": statistics.median(times)}

    def device() -> dict[str, Any]:
        first = jax.devices()[0]
        return {"platform": first.platform, "name": first.device_kind, "capability": cuda_capability()}

    return {"check": check, "seconds": seconds, "device": device}


if __name__ == "__main__":
    serve(build)
