"""Answer-only loss: only supervised positions are projected to the vocabulary, in chunks.

The loss is a sum and not a mean. A step adds the sums of its microbatches and divides once. With the mean of
microbatch means, the weight of a token would depend on its microbatch.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jora_core.architecture.model_config import ModelConfig
from jora_core.model.attention_slots import take_slots
from jora_core.model.cudnn_attention import KernelChoice
from jora_core.model.decoder import forward, output_head, pick_positions
from jora_core.model.rematerialization import Remat
from jora_core.parallel.collectives import (
    max_over_tensor,
    sum_over_batch,
    sum_over_tensor,
    tensor_index,
)
from jora_core.parameters.trees import Adapter, Params

Arrays = dict[str, jax.Array]

# Numbers in the logits of one chunk of positions on one device: 64 MiB in float32.
_CHUNK_LOGITS = 1 << 24


def batch_loss(
    params: Params,
    config: ModelConfig,
    batch: Arrays,
    *,
    adapter: Adapter | None,
    dropout_key: jax.Array | None,
    noise: tuple[float, jax.Array] | None = None,
    remat: Remat = "none",
    attention: KernelChoice = "auto",
    attention_block: int | None = None,
) -> jax.Array:
    """Compute the weighted sum of cross-entropies over a microbatch's supervised positions.

    Under `per_device` the batch is this device's part, and the sum is over all devices.

    Args:
        params: weights, or this device's part of them.
        config: the model's.
        batch: the arrays of `jora_core.data.batches.Batch`.
        adapter: adapter that is trained over frozen `params`; None if `params` are trained.
        dropout_key: random key of the adapter's dropout; None turns dropout off.
        noise: alpha and random key of noise on the embeddings, see `forward`.
        remat: rematerialization policy, see `jora_core.model.rematerialization`.
        attention: kernel choice, see `jora_core.model.cudnn_attention`.
        attention_block: slots of a block of blockwise attention; chosen by platform if None.

    Returns:
        The loss, a float32 scalar.
    """
    places = (batch["tokens"], batch["positions"], batch["until"])
    hidden = forward(
        params,
        config,
        *places,
        adapter=adapter,
        dropout_key=dropout_key,
        noise=noise,
        remat=remat,
        attention=attention,
        attention_block=attention_block,
    )
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


def target_logprobs(
    params: Params, config: ModelConfig, hidden: jax.Array, at: jax.Array, targets: jax.Array
) -> jax.Array:
    """Compute the log-probability of each target token. Targets at one position share its softmax.

    Args:
        params: weights, or this device's part of them.
        config: the model's.
        hidden: hidden states [G, P, D] of some positions.
        at: int32 [G, M], number of each target's position.
        targets: int32 [G, M], token ids.

    Returns:
        float32 [G, M].
    """
    head = output_head(params)
    split = head.shape[0] != config.vocab_size

    def log_total(chunk: tuple[jax.Array]) -> jax.Array:
        logits = _logits(*chunk, head, config)
        top = logits.max(axis=-1)
        top = max_over_tensor(top) if split else top
        total = jnp.exp(logits - top[:, None]).sum(axis=-1)
        return top + jnp.log(sum_over_tensor(total) if split else total)

    chunks, count = _chunks((hidden.reshape(-1, hidden.shape[-1]),), head.shape[0])
    totals = jax.lax.map(log_total, chunks).reshape(-1)[:count].reshape(hidden.shape[:2])
    own = targets - (tensor_index() * head.shape[0] if split else 0)
    # Clipped, so that every row exists. Another device has the targets that are outside of this one's part.
    rows = head[jnp.clip(own, 0, head.shape[0] - 1)]
    chosen = jnp.einsum("gmd,gmd->gm", take_slots(hidden, at), rows, preferred_element_type=jnp.float32)
    chosen = _capped(chosen, config)
    if split:
        chosen = sum_over_tensor(jnp.where((own >= 0) & (own < head.shape[0]), chosen, 0.0))
    return chosen - take_slots(totals, at)


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    config: ModelConfig,
    *,
    head_trained: bool,
) -> jax.Array:
    """Compute the weighted sum of cross-entropies, the sum of weight × -log p(target).

    The forward pass also computes the gradient of each chunk, as in Liger Kernel (arXiv:2410.10989). So the
    logits of a chunk are computed once, and no logits are kept for the backward pass.

    Args:
        hidden: [M, D].
        head: [V, D], or this device's part of the vocabulary.
        targets: int [M].
        weights: float32 [M].
        config: the model's, for vocabulary size and soft-cap.
        head_trained: whether the gradient of `head` is needed too.
    """
    with jax.named_scope("vocabulary"):
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


def _forward(
    config: ModelConfig,
    head_trained: bool,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None]]:
    def visit(
        d_head: jax.Array | None, chunk: tuple[jax.Array, ...]
    ) -> tuple[jax.Array | None, tuple[jax.Array, jax.Array]]:
        h, target, weight = chunk
        total, chosen, logits, hit = _chunk_terms(h, target, head, config)
        # The derivative of cross-entropy by the logits is probability minus one-hot target.
        change = (jnp.exp(logits - total[:, None]) - hit) * weight[:, None]
        if config.logit_softcap is not None:
            # The derivative of c·tanh(x/c) is 1 - tanh², where tanh is the capped logit over c.
            change = change * (1 - jnp.square(logits / config.logit_softcap))
        # The products run in the type of the weights, as in the forward pass; their sums are float32.
        change = change.astype(head.dtype)
        d_h = jnp.einsum("mv,vd->md", change, head, preferred_element_type=jnp.float32)
        if d_head is not None:
            d_head = d_head + jnp.einsum("mv,md->vd", change, h, preferred_element_type=jnp.float32)
        return d_head, (jnp.sum(weight * (total - chosen)), d_h)

    chunks, count = _chunks((hidden, targets, weights), head.shape[0])
    # The start is computed from the inputs: `jax.shard_map` requires that it varies over the same mesh axes
    # as what the scan adds to it.
    start = 0 * (head.astype(jnp.float32) + hidden[:1, :1]) if head_trained else None
    d_head, (losses, d_hidden) = jax.lax.scan(visit, start, chunks)
    d_hidden = d_hidden.reshape(-1, hidden.shape[-1])[:count]
    if head.shape[0] != config.vocab_size:  # each device has added up its part of the vocabulary only
        d_hidden = sum_over_tensor(d_hidden)
    if d_head is not None:
        d_head = d_head.astype(head.dtype)
    return losses.sum(), (d_hidden.astype(hidden.dtype), d_head)


def _backward(
    config: ModelConfig,
    head_trained: bool,
    saved: tuple[jax.Array, jax.Array | None],
    upstream: jax.Array,
) -> tuple[jax.Array, jax.Array | None, None, None]:
    d_hidden, d_head = saved
    scaled = (d_hidden * upstream).astype(d_hidden.dtype)
    if d_head is None:
        return scaled, None, None, None
    return scaled, sum_over_batch((d_head * upstream).astype(d_head.dtype)), None, None


_cross_entropy.defvjp(_forward, _backward)


def _chunk_terms(
    hidden: jax.Array, targets: jax.Array, head: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Compute the terms of the loss of one chunk.

    Returns:
        The log-sum-exp of the logits [M], the logit of the target [M], this device's part of the logits
        [M, V/N], and a mask of the target in that part, bool [M, V/N].
    """
    logits = _logits(hidden, head, config)
    # The maximum is subtracted first, because `exp` overflows float32 above 88.
    top = logits.max(axis=-1)
    split = head.shape[0] != config.vocab_size
    first = tensor_index() * head.shape[0] if split else 0
    hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1) == (targets - first)[:, None]
    if not split:
        total = jnp.exp(logits - top[:, None]).sum(axis=-1)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1, mode="clip")[:, 0]
        return top + jnp.log(total), chosen, logits, hit
    top = max_over_tensor(top)
    # A comparison with every token id instead of a gather: where another device has the target, it is false
    # for all of them and adds zero to the sum over devices. Both sums in one array: one collective, not two.
    total, chosen = sum_over_tensor(
        jnp.stack([jnp.exp(logits - top[:, None]).sum(axis=-1), jnp.where(hit, logits, 0.0).sum(axis=-1)])
    )
    return top + jnp.log(total), chosen, logits, hit


def _logits(hidden: jax.Array, head: jax.Array, config: ModelConfig) -> jax.Array:
    return _capped(jnp.einsum("md,vd->mv", hidden, head, preferred_element_type=jnp.float32), config)


def _capped(logits: jax.Array, config: ModelConfig) -> jax.Array:
    cap = config.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _chunks(arrays: tuple[jax.Array, ...], vocabulary: int) -> tuple[tuple[jax.Array, ...], int]:
    """Divide arrays [M, ...] into [chunks, m, ...], zero-padded at the end, and return them with M."""
    count = arrays[0].shape[0]
    size = max(1, min(count, _CHUNK_LOGITS // vocabulary))
    short = -count % size
    return tuple(
        jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, size, *x.shape[1:]) for x in arrays
    ), count
