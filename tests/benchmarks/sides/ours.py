"""Our side of a benchmark: the real training step, `jora_core.training.train_step.build_step`, on made-up
batches.

A worker of `harness`: settings come on stdin, then requests. Not run by hand.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import HostMemory, serve
from sides.step_profile import seconds_by_kind
from sides.workload import (
    ADAPTER_B_BOUND,
    WEIGHT_BOUND,
    first_supervised,
    layer_kinds,
    random_values,
    token_ids,
)

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.batches import Batch, BatchStream
from jora_core.data.shared_context import Branch, Group, Piece
from jora_core.model import blockwise_attention, cudnn_attention
from jora_core.model.attention_slots import Slots
from jora_core.model.dense_attention import attention, example_mask
from jora_core.model.projections import frozen_type
from jora_core.parallel.mesh import make_mesh
from jora_core.parameters.initialize import init_adapter, init_params
from jora_core.parameters.quantization import quantize_params
from jora_core.specs.train import TrainSpec
from jora_core.training.optimizer import make_schedule
from jora_core.training.train_step import build_step


def stacked(
    settings: dict[str, Any], name: str, shape: tuple[int, ...], bound: float, dtype: Any
) -> jax.Array:
    """All layers' values [L, ...] of one tensor."""
    kinds = layer_kinds(settings)
    made = [random_values(name, kind, shape[1:], bound).astype(dtype) for kind in range(kinds)]
    on_device = jnp.asarray(np.stack(made))
    return on_device if kinds == shape[0] else on_device[jnp.arange(shape[0]) % kinds]


def make_weights(settings: dict[str, Any], config: ModelConfig) -> Any:
    """`Params` of this shape: random matrices, norms of one."""
    dtype = jnp.dtype(settings["dtype"])

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].name
        if "norm" in name:
            return jnp.asarray(np.ones(leaf.shape, dtype))
        if len(path) > 1:
            return stacked(settings, name, leaf.shape, WEIGHT_BOUND, frozen_type(dtype))
        return jnp.asarray(random_values(name, 0, leaf.shape, WEIGHT_BOUND).astype(dtype))

    shapes = jax.eval_shape(lambda key: init_params(config, key, dtype), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def make_adapter(settings: dict[str, Any], config: ModelConfig, spec: TrainSpec) -> Any:
    """A float32 adapter: random A and B."""
    shapes = jax.eval_shape(lambda key: init_adapter(config, spec.lora, key), jax.random.key(0))
    weights = {
        name: dataclasses.replace(
            pair,
            a=stacked(settings, f"{name}.A", pair.a.shape, pair.a.shape[-1] ** -0.5, jnp.float32),
            b=stacked(settings, f"{name}.B", pair.b.shape, ADAPTER_B_BOUND, jnp.float32),
        )
        for name, pair in shapes.weights.items()
    }
    return dataclasses.replace(shapes, weights=weights)


def order(settings: dict[str, Any]) -> TrainSpec:
    """The public order for this run."""
    return TrainSpec.model_validate(
        {
            "model": settings["folder"],
            "init": "random",
            "lora": {"r": settings["rank"], "lora_alpha": settings["alpha"], "lora_dropout": 0.0},
            "optim": {"learning_rate": settings["learning_rate"], "schedule": "constant", "warmup_ratio": 0},
            "data": {
                "records": "none.parquet",
                "max_seq_len": settings["sequence"],
                "tokens_per_batch": settings.get("tokens_per_batch")
                or settings["sequence"] * settings["batch"],
            },
            "max_steps": 1000,
            "dtype": settings["dtype"],
            "matmul_precision": settings.get("matmul_precision", "default"),
            "output_dir": settings["folder"],
            "checkpoint_dir": settings["folder"],
            **({"remat": settings["remat"]} if settings.get("remat") else {}),
            # What `exchange` puts in place of XLA's loops, or of their blocks, is not used by kernels.
            **({"attention": "blockwise"} if settings.get("attention") or settings.get("block") else {}),
        }
    )


def make_batch(settings: dict[str, Any], step: int) -> Batch:
    """The microbatch of one step, laid out by the same code as records are."""
    weights = np.zeros(settings["sequence"], np.float32)
    weights[first_supervised(settings) :] = 1
    rows = token_ids(settings, step)
    groups = [Group((f"row-{i}",), (Branch(0, Piece(row, weights)),)) for i, row in enumerate(rows)]
    stream = BatchStream(groups, settings["sequence"] * settings["batch"], seed=0, shuffle=False)
    (plan,) = stream.plan(0)
    batch = stream.build(plan)
    if batch.tokens.shape != rows.shape:
        raise ValueError(f"rows of {batch.tokens.shape}, expected {rows.shape}; use multiples of 64 tokens")
    return all_logits(batch) if settings.get("logits") == "all" else batch


def all_logits(batch: Batch) -> Batch:
    """The same batch with every slot sent through the output projection, as a plain loss would."""
    slots = batch.tokens.size
    targets, weights = np.zeros((1, slots), np.int32), np.zeros((1, slots), np.float32)
    used = batch.weights > 0
    targets[0, batch.index[used]] = batch.targets[used]
    weights[0, batch.index[used]] = batch.weights[used]
    index = np.arange(slots, dtype=np.int32)[None]
    return dataclasses.replace(batch, index=index, targets=targets, weights=weights)


def plain_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, slots: Slots, *, scale: float, window: int = 0, **settings: Any
) -> jax.Array:
    """What stands in for blockwise attention to see what that gives: all scores in memory."""
    # Of the other settings, blocks mean nothing here, and training asks for all queries.
    mask = example_mask(slots, window)
    return attention(q, k, v, mask, scale=scale, softcap=settings["softcap"])


def exchange(settings: dict[str, Any]) -> None:
    """Techniques that no order chooses, exchanged in this process before anything is compiled."""
    if settings.get("attention") == "plain":
        setattr(cudnn_attention, "blockwise_attention", plain_attention)  # noqa: B010 - seen by no type checker
    if settings.get("block"):
        blockwise_attention.BLOCK_SLOTS[jax.default_backend()] = settings["block"]


def build(settings: dict[str, Any]) -> dict[str, Any]:
    """Make the model and compile nothing yet: the first steps are the warm-up.

    With "probe" among the settings, only what device there is can be asked.
    """
    memory = HostMemory()

    def device() -> dict[str, Any]:
        first = jax.devices()[0]
        return {"platform": first.platform, "name": first.device_kind}

    if settings.get("probe"):
        return {"device": device}
    exchange(settings)
    config = ModelConfig.from_hf(Path(settings["folder"]))
    spec = order(settings)
    mesh = make_mesh()
    jax.set_mesh(mesh)
    jax.config.update("jax_default_matmul_precision", spec.matmul_precision)
    frozen = make_weights(settings, config)
    if settings.get("quantization"):
        frozen = quantize_params(frozen, settings["quantization"])
    adapter = make_adapter(settings, config, spec)
    functions = build_step(config, spec, mesh, make_schedule(spec.optim, 1000), adapter)
    state = functions.start(adapter)
    sums = functions.zero(state)
    del adapter

    def step(step: int) -> dict[str, Any]:
        nonlocal state, sums
        batch = make_batch(settings, step)
        began = time.perf_counter()
        sums = functions.accumulate(sums, state, frozen, functions.place(batch), 0)
        state, sums, metrics = functions.update(state, sums)
        loss = float(metrics.loss)
        jax.block_until_ready(state)
        return {"loss": loss, "seconds": time.perf_counter() - began}

    def forward(step: int) -> dict[str, Any]:
        batch = make_batch(settings, step)
        began = time.perf_counter()
        loss, weight = functions.evaluate(state, frozen, functions.place(batch))
        return {"loss": float(loss) / float(weight), "seconds": time.perf_counter() - began}

    def report() -> dict[str, Any]:
        # Without statistics of the device (CPU) its memory is the process's own.
        device = jax.devices()[0].memory_stats() or {}
        peak = device.get("peak_bytes_in_use")
        return memory.report() | ({} if peak is None else {"device_peak_bytes": peak})

    def use(sequence: int) -> dict[str, Any]:
        """Go on with rows of another length; memory's peak is that of all so far."""
        settings["sequence"] = sequence
        return {}

    def profile(step: int) -> dict[str, Any]:
        """Seconds of a step's gradient by kind of operation, and of the whole."""
        placed = functions.place(make_batch(settings, step))
        arguments = (sums, state, frozen, placed, 0)
        compiled = functions.accumulate.lower(*arguments).compile()

        def gradient() -> None:
            nonlocal sums
            sums = compiled(sums, state, frozen, placed, 0)
            jax.block_until_ready(sums)

        gradient()
        began = time.perf_counter()
        gradient()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "by_kind": seconds_by_kind(gradient, compiled.as_text())}

    chosen = forward if settings.get("only") == "forward" else step
    return {"step": chosen, "warm": memory.warm, "memory": report, "use": use, "profile": profile}


if __name__ == "__main__":
    serve(build)
