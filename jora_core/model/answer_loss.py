"""Answer-only loss: only supervised positions ever meet the vocabulary, a chunk of them at a time.

Sums are returned, not means: a step adds the sums of its microbatches and divides once, since the mean of
microbatch means weights tokens by the batch they happen to be in.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jora_core.architecture.model_config import ModelConfig
from jora_core.model.decoder import forward, output_head
from jora_core.model.rematerialization import Remat
from jora_core.parallel.collectives import (
    max_over_tensor,
    sum_over_batch,
    sum_over_tensor,
    tensor_index,
    tensor_shards,
    tokens_split,
)
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.common import AttentionChoice

Arrays = dict[str, jax.Array]

# Logits of one chunk of positions, on one device: 64 MiB.
_CHUNK_LOGITS = 1 << 24


def batch_loss(
    params: Params,
    config: ModelConfig,
    batch: Arrays,
    *,
    adapter: Adapter | None,
    dropout_key: jax.Array | None,
    remat: Remat = "none",
    attention: AttentionChoice = "auto",
) -> jax.Array:
    """Weighted sum of the cross-entropies of a microbatch's supervised positions, float32 scalar.

    Under `per_device` the batch is this device's part, and the sum is over all devices.

    Args:
        batch: the arrays of `jora_core.data.batches.Batch`.
        adapter: trained over frozen `params`; None if it is `params` that are trained.
        dropout_key: None turns the adapter's dropout off.
    """
    places = (batch["tokens"], batch["positions"], batch["until"])
    options = {"adapter": adapter, "dropout_key": dropout_key, "remat": remat, "attention": attention}
    hidden = forward(params, config, *places, **options)
    picked = pick_positions(hidden, batch["index"], batch["tokens"].shape[1])
    loss = cross_entropy(
        picked.reshape(-1, picked.shape[-1]),
        output_head(params),
        batch["targets"].reshape(-1),
        batch["weights"].reshape(-1),
        config,
        head_trained=adapter is None,
    )
    return sum_over_batch(loss)


def pick_positions(hidden: jax.Array, index: jax.Array, length: int) -> jax.Array:
    """Hidden states of some slots: [G, M, D], on every device of the tensor axis.

    Args:
        hidden: [B, T, D] of `forward`, or this device's tokens of it.
        index: int32 [G, M], slots numbered within their block of B/G rows, so that no gather crosses the
            data axis.
        length: T.
    """
    rows = hidden.reshape(index.shape[0], -1, hidden.shape[-1])
    if not tokens_split(length):
        return jnp.take_along_axis(rows, index[..., None], axis=1, mode="clip")
    size = length // tensor_shards()
    row, token = index // length, index % length
    own = token // size == tensor_index()
    picked = jnp.take_along_axis(rows, (row * size + token % size)[..., None], axis=1, mode="clip")
    return sum_over_tensor(jnp.where(own[..., None], picked, jnp.zeros_like(picked)))


def target_logprobs(params: Params, config: ModelConfig, picked: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probability float32 [..., M] of each target after hidden states [..., M, D]."""
    head = output_head(params)

    def logprobs(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        total, chosen, _, _ = _chunk_terms(*chunk, head, config)
        return chosen - total

    hidden = picked.reshape(-1, picked.shape[-1])
    parts, count = _chunks((hidden, targets.reshape(-1)), head.shape[0])
    return jax.lax.map(logprobs, parts).reshape(-1)[:count].reshape(targets.shape)


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    config: ModelConfig,
    *,
    head_trained: bool,
) -> jax.Array:
    """Sum of weight times -log p(target), p from the vocabulary that `head` projects to.

    The gradient is taken chunk by chunk in the forward pass (as in Liger Kernel, arXiv:2410.10989), which
    needs each chunk's logits once and keeps none of them; without a trained head there is none for it.

    Args:
        hidden: [M, D]; targets: int [M]; weights: float32 [M].
        head: [V, D], or this device's part of the vocabulary.
    """
    return _cross_entropy(config, head_trained, hidden, head, targets, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(
    config: ModelConfig,
    head_trained: bool,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    def loss(chunk: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        total, chosen, _, _ = _chunk_terms(chunk[0], chunk[1], head, config)
        return jnp.sum(chunk[2] * (total - chosen))

    return jax.lax.map(loss, _chunks((hidden, targets, weights), head.shape[0])[0]).sum()


def _forward(config, head_trained, hidden, head, targets, weights):
    def visit(d_head, chunk):
        h, target, weight = chunk
        total, chosen, logits, hit = _chunk_terms(h, target, head, config)
        change = (jnp.exp(logits - total[:, None]) - hit) * weight[:, None]
        if config.logit_softcap is not None:
            change = change * (1 - jnp.square(logits / config.logit_softcap))
        change = change.astype(head.dtype)
        d_h = jnp.einsum("mv,vd->md", change, head, preferred_element_type=jnp.float32)
        if head_trained:
            d_head = d_head + jnp.einsum("mv,md->vd", change, h, preferred_element_type=jnp.float32)
        return d_head, (jnp.sum(weight * (total - chosen)), d_h)

    chunks, count = _chunks((hidden, targets, weights), head.shape[0])
    # Varies over the same mesh axes as what is added to it.
    start = 0 * (head.astype(jnp.float32) + hidden[:1, :1]) if head_trained else None
    d_head, (losses, d_hidden) = jax.lax.scan(visit, start, chunks)
    d_hidden = d_hidden.reshape(-1, hidden.shape[-1])[:count]
    if head.shape[0] != config.vocab_size:  # each device has seen its part of the vocabulary
        d_hidden = sum_over_tensor(d_hidden)
    if d_head is not None:
        d_head = d_head.astype(head.dtype)
    return losses.sum(), (d_hidden.astype(hidden.dtype), d_head)


def _backward(config, head_trained, saved, upstream):
    d_hidden, d_head = saved
    scaled = (d_hidden * upstream).astype(d_hidden.dtype)
    if d_head is None:
        return scaled, None, None, None
    return scaled, sum_over_batch((d_head * upstream).astype(d_head.dtype)), None, None


_cross_entropy.defvjp(_forward, _backward)


def _chunk_terms(
    hidden: jax.Array, targets: jax.Array, head: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of one chunk: log of the sum of exponentials [M], the target's logit [M], logits [M, V/N] of this
    device's part of the vocabulary, and where in it the target stands, bool [M, V/N].
    """
    logits = jnp.einsum("md,vd->mv", hidden, head, preferred_element_type=jnp.float32)
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    top = logits.max(axis=-1)
    split = head.shape[0] != config.vocab_size
    first = tensor_index() * head.shape[0] if split else 0
    hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1) == (targets - first)[:, None]
    if split:
        top = max_over_tensor(top)
    sums = jnp.stack(
        [
            jnp.exp(logits - top[:, None]).sum(axis=-1),
            jnp.where(hit, logits, 0.0).sum(axis=-1),
        ]
    )
    if split:
        sums = sum_over_tensor(sums)
    return top + jnp.log(sums[0]), sums[1], logits, hit


def _chunks(arrays: tuple[jax.Array, ...], vocabulary: int) -> tuple[tuple[jax.Array, ...], int]:
    """[M, ...] arrays as [chunks, m, ...], zeros behind the last, and M."""
    count = arrays[0].shape[0]
    size = max(1, min(count, _CHUNK_LOGITS // vocabulary))
    short = -count % size
    return tuple(
        jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, size, *x.shape[1:]) for x in arrays
    ), count
