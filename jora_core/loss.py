"""Answer-only loss: only supervised positions ever meet the vocabulary.

Sums are returned, not means: a step adds the sums of its microbatches and divides once, since the mean of
microbatch means weights tokens by the batch they happen to be in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jora_core.config import ModelConfig
from jora_core.lora import Adapter
from jora_core.model import Params, Remat, forward, unembed
from jora_core.sharding import BATCH, constrain

Arrays = dict[str, jax.Array]


def batch_loss(
    params: Params,
    config: ModelConfig,
    batch: Arrays,
    *,
    adapter: Adapter | None,
    dropout_key: jax.Array | None,
    remat: Remat = "none",
) -> jax.Array:
    """Weighted sum of the cross-entropies of a microbatch's supervised positions, float32 scalar.

    Args:
        batch: the arrays of `jora_core.batches.Batch`.
        dropout_key: None turns the adapter's dropout off.
    """
    hidden = forward(
        params,
        config,
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        batch["suffix_ids"],
        adapter=adapter,
        dropout_key=dropout_key,
        remat=remat,
    )
    # Supervised positions are numbered within their block of rows: a gather never crosses the data axis.
    blocks = batch["index"].shape[0]
    rows = hidden.reshape(blocks, -1, hidden.shape[-1])
    picked = jnp.take_along_axis(rows, batch["index"][..., None], axis=1, mode="clip")
    logits = unembed(params, config, constrain(picked, BATCH, None, None))
    return weighted_cross_entropy(logits, batch["targets"], batch["weights"])


@jax.custom_vjp
def weighted_cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of weight times -log p(target): logits float32 [..., V], targets int [...], weights [...].

    The gradient is written out: derived, it holds a second [..., V] of probabilities and scatters into a
        third, which costs a quarter more on a CPU and the memory anywhere.
    """
    return _cross_entropy(logits, targets, weights)[0]


def _cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
    return jnp.sum(weights * (total - chosen)), total


def _cross_entropy_forward(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple:
    value, total = _cross_entropy(logits, targets, weights)
    return value, (logits, total, targets, weights)


def _cross_entropy_backward(saved: tuple, upstream: jax.Array) -> tuple:
    logits, total, targets, weights = saved
    hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    change = jnp.exp(logits - total[..., None]) - hit
    return change * (weights * upstream)[..., None], None, None


weighted_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
