"""The compiled functions of a training step: add up the gradients of microbatches, then update once.

The trained parameters are one tree: an `Adapter` over frozen weights, or the `Params` themselves. The code is
the same for both. Microbatches of different shapes add to the same sums, so only `accumulate` is compiled for
each shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.batches import Batch
from jora_core.model.answer_loss import Arrays, batch_loss
from jora_core.parallel.collectives import per_device
from jora_core.parallel.placements import adapter_shardings, batch_sharding, param_shardings, replicated
from jora_core.parallel.processes import put
from jora_core.parameters.trees import Params
from jora_core.specs.train import TrainSpec
from jora_core.training.optimizer import make_optimizer

# The fields of a `Batch` that go to the device, all with rows (or blocks of rows) first.
BATCH_ARRAYS = ("tokens", "positions", "until", "index", "targets", "weights")


@flax.struct.dataclass
class TrainState:
    """Training state, saved in checkpoints: finished steps, the trained tree in float32, AdamW's state."""

    step: jax.Array
    trainable: Any
    opt_state: Any


@flax.struct.dataclass
class Sums:
    """Sums over the microbatches of one step.

    Means are not used: in a mean of microbatch means, the weight of a token would depend on its microbatch.

    Attributes:
        grads: gradient of the summed loss, a tree like the trained one, float32.
        loss: float32 scalar, sum of weighted cross-entropies.
        weight: float32 scalar, sum of the weights.
    """

    grads: Any
    loss: jax.Array
    weight: jax.Array


@flax.struct.dataclass
class StepMetrics:
    """Scalar metrics of one step, which stay on the device until they are read, so that no step waits."""

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array


@dataclass(frozen=True)
class TrainStep:
    """The compiled functions of a training run.

    Attributes:
        start: trained tree → TrainState of step 0, placed on the mesh.
        zero: TrainState → empty Sums.
        accumulate: (sums, state, frozen, batch, microbatch number) → sums; the given sums are donated.
        update: (state, sums) → (state, empty sums, metrics); both arguments are donated.
        evaluate: (state, frozen, batch) → (summed loss, summed weights), without dropout.
        place: a host batch → arrays on the mesh.
    """

    start: Callable[[Any], TrainState]
    zero: Callable[[TrainState], Sums]
    accumulate: Callable[[Sums, TrainState, Params | None, Arrays, int], Sums]
    update: Callable[[TrainState, Sums], tuple[TrainState, Sums, StepMetrics]]
    evaluate: Callable[[TrainState, Params | None, Arrays], tuple[jax.Array, jax.Array]]
    place: Callable[[Batch], Arrays]


def build_step(
    config: ModelConfig,
    spec: TrainSpec,
    mesh: Mesh,
    schedule: optax.Schedule,
    trainable: Any,
    attention_block: int | None = None,
) -> TrainStep:
    """Build the compiled functions of a training step.

    Args:
        config: the model's.
        spec: settings of training and seed.
        mesh: data × tensor devices.
        schedule: learning rate by step.
        trainable: the tree to train, or its shapes; only its structure is used.
        attention_block: slots of a block of blockwise attention; chosen by platform if None.
    """
    optimizer = make_optimizer(spec.optim, schedule)
    lora = spec.trainable == "lora"
    dropout = lora and spec.lora.lora_dropout > 0
    whole = replicated(mesh)
    placed = adapter_shardings(config, trainable, mesh) if lora else param_shardings(config, mesh)
    # AdamW's moments are placed as their parameters are; its counters are replicated.
    opt_placed = optax.tree_map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(optimizer.init, trainable),
        placed,
        transform_non_params=lambda _: whole,
    )
    state_placed = TrainState(step=whole, trainable=placed, opt_state=opt_placed)  # type: ignore[arg-type]
    sums_placed = Sums(grads=placed, loss=whole, weight=whole)  # type: ignore[arg-type]

    options: dict[str, Any] = {
        "remat": spec.remat,
        "attention": spec.attention,
        "attention_block": attention_block,
    }

    alpha = spec.neftune_noise_alpha

    def loss(tree: Any, frozen: Params | None, batch: Arrays, key: jax.Array | None) -> jax.Array:
        # Behind the numbers of all layers, which the masks of dropout are drawn by.
        noise = None if alpha is None or key is None else (alpha, jax.random.fold_in(key, config.num_layers))
        if lora:
            assert frozen is not None
            mask_key = key if dropout else None
            return batch_loss(
                frozen, config, batch, adapter=tree, dropout_key=mask_key, noise=noise, **options
            )
        # Master weights and AdamW's state stay float32: an update of bfloat16 weights would be lost in
        # rounding as soon as it is below 1/256 of a weight. Only the pass over the batch runs in `dtype`.
        params = jax.tree.map(lambda x: x.astype(spec.dtype), tree)
        return batch_loss(params, config, batch, adapter=None, dropout_key=None, noise=noise, **options)

    frozen_placed = param_shardings(config, mesh, spec.quantization) if lora else None
    rows = batch_sharding(mesh)
    batch_placed = dict.fromkeys(BATCH_ARRAYS, rows)

    def gradients_here(
        tree: Any, frozen: Params | None, batch: Arrays, step: jax.Array, microbatch: jax.Array
    ) -> tuple[jax.Array, Any]:
        # Random numbers follow from (seed, step, microbatch) alone, so no generator state is part of a
        # checkpoint, and a resumed run draws the same masks.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(spec.seed), step), microbatch)
        return jax.value_and_grad(loss)(tree, frozen, batch, key)

    gradients = per_device(
        gradients_here, mesh, (placed, frozen_placed, batch_placed, whole, whole), (whole, placed)
    )
    batch_loss_alone = per_device(
        lambda tree, frozen, batch: loss(tree, frozen, batch, None),
        mesh,
        (placed, frozen_placed, batch_placed),
        whole,
    )

    def start(tree: Any) -> TrainState:
        return TrainState(step=jnp.zeros((), jnp.int32), trainable=tree, opt_state=optimizer.init(tree))

    def zero(state: TrainState) -> Sums:
        none = jnp.zeros((), jnp.float32)
        return Sums(grads=jax.tree.map(jnp.zeros_like, state.trainable), loss=none, weight=none)

    def accumulate(
        sums: Sums, state: TrainState, frozen: Params | None, batch: Arrays, microbatch: int
    ) -> Sums:
        number = jnp.asarray(microbatch, jnp.int32)
        value, grads = gradients(state.trainable, frozen, batch, state.step, number)
        return Sums(
            grads=jax.tree.map(jnp.add, sums.grads, grads),
            loss=sums.loss + value,
            weight=sums.weight + batch["weights"].sum(),
        )

    def update(state: TrainState, sums: Sums) -> tuple[TrainState, Sums, StepMetrics]:
        # One division by the weights of all microbatches; the bound is for a step without supervised tokens.
        share = 1 / jnp.maximum(sums.weight, 1e-9)
        grads = jax.tree.map(lambda g: g * share, sums.grads)
        changes, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        new = TrainState(
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, changes),
            opt_state=opt_state,
        )
        metrics = StepMetrics(
            loss=sums.loss * share,
            grad_norm=optax.tree.norm(grads),
            learning_rate=jnp.asarray(schedule(state.step)),
        )
        return new, jax.tree.map(jnp.zeros_like, sums), metrics

    def evaluate(state: TrainState, frozen: Params | None, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        return batch_loss_alone(state.trainable, frozen, batch), batch["weights"].sum()

    def place(batch: Batch) -> Arrays:
        arrays = {name: getattr(batch, name) for name in BATCH_ARRAYS}
        return put(arrays, rows)

    # Donated arguments are written in place: without that, two copies of the sums, and of the trained tree
    # with AdamW's moments, would be alive at once.
    return TrainStep(
        start=jax.jit(start, out_shardings=state_placed),
        zero=jax.jit(zero, out_shardings=sums_placed),
        accumulate=jax.jit(accumulate, donate_argnums=0, out_shardings=sums_placed),
        update=jax.jit(update, donate_argnums=(0, 1), out_shardings=(state_placed, sums_placed, whole)),
        evaluate=jax.jit(evaluate, out_shardings=whole),
        place=place,
    )
