"""Greedy generation: one prefill, then one token a step from a key/value cache, all in one compiled program.

Prompts are sorted into few lengths, so few programs are compiled. A row's prompt stands left in its slots and
generated tokens from slot T on, the same slot for all rows: the cache is written in one place, and a mask
hides the padding between a short prompt's end and slot T. Positions do not know the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jora_core.attention import attention
from jora_core.batches import choose_row_lengths, rows_of
from jora_core.blockwise import Slots, blockwise_attention, reach
from jora_core.config import ModelConfig
from jora_core.lora import Adapter
from jora_core.loss import pick_positions
from jora_core.model import (
    Layer,
    Params,
    attention_scale,
    decoder_layer,
    embed,
    over_layers,
    projector,
    rms_norm,
    rotary_tables,
    unembed,
)
from jora_core.sharding import (
    batch_sharding,
    current_mesh,
    data_shards,
    gather_vocabulary,
    model_shardings,
    per_device,
    replicated,
    sum_over_batch,
    tokens_split,
)

Cache = tuple[jax.Array, jax.Array]  # keys and values of all layers, [L, B, C, K, H] each


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[np.ndarray],
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    tokens_per_batch: int = 8192,
    adapter: Adapter | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Continue each prompt greedily until an end token or `max_new_tokens`.

    Args:
        prompts: int32 [T] each, at least one token, special tokens included.
        eos_ids: any of these ends an answer; it is not part of it.
        tokens_per_batch: padded slots of one batch, prompt and answer.
        on_rows: told how many prompts have just been answered.

    Returns:
        int32 tokens per prompt, in the order given.
    """
    answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    if not prompts:
        return answers
    sizes = np.asarray([len(prompt) for prompt in prompts])
    ends = jnp.asarray(sorted(set(eos_ids)), jnp.int32)
    shards, mesh = data_shards(), current_mesh()
    shorter = 0
    for length in choose_row_lengths(sizes, tokens_per_batch):
        inside = np.flatnonzero((sizes > shorter) & (sizes <= length))
        shorter = length
        fit = rows_of(length + max_new_tokens, tokens_per_batch)
        height = -(-min(fit, max(len(inside), 1)) // shards) * shards
        for start in range(0, len(inside), height):
            chosen = inside[start : start + height]
            tokens = np.zeros((height, length), np.int32)
            for row, number in enumerate(chosen):
                tokens[row, : sizes[number]] = prompts[number]
            lengths = np.zeros(height, np.int32)
            lengths[: len(chosen)] = sizes[chosen]
            new, counts = jax.device_get(
                _generate_batch(params, adapter, tokens, lengths, ends, config, max_new_tokens, mesh)
            )
            for row, number in enumerate(chosen):
                answers[number] = new[row, : counts[row]]
            if on_rows is not None:
                on_rows(len(chosen))
    return answers


@partial(jax.jit, static_argnames=("config", "most", "mesh"))
def _generate_batch(
    params: Params,
    adapter: Adapter | None,
    tokens: jax.Array,
    lengths: jax.Array,
    ends: jax.Array,
    config: ModelConfig,
    most: int,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """New tokens int32 [B, most] and how many of them count [B]; rows of length 0 are padding."""
    rows = batch_sharding(mesh)
    places = (*model_shardings(config, params, adapter, mesh), rows, rows, replicated(mesh))
    work = per_device(partial(_generate_here, config=config, most=most), mesh, places, (rows, rows))
    return work(params, adapter, tokens, lengths, ends)


def _generate_here(
    params: Params,
    adapter: Adapter | None,
    tokens: jax.Array,
    lengths: jax.Array,
    ends: jax.Array,
    *,
    config: ModelConfig,
    most: int,
) -> tuple[jax.Array, jax.Array]:
    slots = tokens.shape[1]
    hidden, cache = _prefill(params, config, adapter, tokens, lengths, slots + most)
    ends_at = jnp.arange(tokens.shape[0]) * slots + jnp.maximum(lengths - 1, 0)
    first = _pick(params, config, pick_positions(hidden, ends_at[None], slots)[0])

    def more(state: tuple[Any, ...]) -> jax.Array:
        step, _, done, _, _, _ = state
        # All devices take the same number of steps: their collectives meet.
        return (step < most) & (sum_over_batch((~done).sum()) > 0)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, token, done, new, counts, cache = state
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, step))
        counts = counts + ~done

        def next_token() -> tuple[jax.Array, Cache]:
            hidden, grown = _decode(params, config, adapter, token, lengths, step, slots, cache)
            return _pick(params, config, hidden[:, 0]), grown

        # The last token is only written down: nothing follows from it.
        token, cache = jax.lax.cond(step + 1 < most, next_token, lambda: (token, cache))
        return step + 1, token, done | jnp.isin(token, ends), new, counts, cache

    done = jnp.isin(first, ends) | (lengths == 0)
    zeros = jnp.zeros((tokens.shape[0], most), jnp.int32) + 0 * lengths[:, None]
    state = (jnp.zeros((), jnp.int32), first, done, zeros, jnp.zeros_like(lengths), cache)
    _, _, _, new, counts, _ = jax.lax.while_loop(more, advance, state)
    return new, counts


def _pick(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """The likeliest token after hidden [B, D]: int32 [B]; the lowest id of equals."""
    logits = gather_vocabulary(unembed(params, config, hidden), config.vocab_size)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _prefill(
    params: Params,
    config: ModelConfig,
    adapter: Adapter | None,
    tokens: jax.Array,
    lengths: jax.Array,
    capacity: int,
) -> tuple[jax.Array, Cache]:
    """Hidden states of the prompts as `forward` gives them, and a cache of `capacity` slots that holds their
    keys and values.
    """
    slot = jnp.arange(tokens.shape[1])
    positions = jnp.broadcast_to(slot, tokens.shape)
    real = (slot < lengths[:, None]).astype(jnp.int32)
    slots = Slots(real, jnp.zeros_like(real), positions)
    rotary = rotary_tables(config, positions)
    spare = ((0, 0), (0, capacity - tokens.shape[1]), (0, 0), (0, 0))
    split = tokens_split(tokens.shape[1])

    def step(x: jax.Array, layer: Layer) -> tuple[jax.Array, Cache]:
        kept: list[jax.Array] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kept.extend((k, v))
            scale, softcap = attention_scale(config), config.attention_softcap
            return blockwise_attention(q, k, v, slots, scale=scale, softcap=softcap, window=layer.window)

        x = decoder_layer(config, x, layer, projector(layer, adapter, None, split), rotary, attend, split)
        return x, (jnp.pad(kept[0], spare), jnp.pad(kept[1], spare))

    x, cache = over_layers(step, embed(params, config, tokens), params, config, adapter)
    return rms_norm(x, params.final_norm, config), cache


def _decode(
    params: Params,
    config: ModelConfig,
    adapter: Adapter | None,
    token: jax.Array,
    lengths: jax.Array,
    step: jax.Array,
    prompt_slots: int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Hidden state [B, 1, D] of the token of this step, and the cache with its keys and values."""
    slot = jnp.arange(cache[0].shape[2])
    seen = (slot < lengths[:, None]) | ((slot >= prompt_slots) & (slot <= prompt_slots + step))
    ago = (
        lengths[:, None] + step - jnp.where(slot < prompt_slots, slot, lengths[:, None] + slot - prompt_slots)
    )
    rotary = rotary_tables(config, (lengths + step)[:, None])

    def one_layer(x: jax.Array, inputs: tuple[Layer, Cache]) -> tuple[jax.Array, Cache]:
        layer, (keys, values) = inputs
        mask = (seen & (ago < reach(layer.window)))[:, None, :]
        kept: list[jax.Array] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            at = (0, prompt_slots + step, 0, 0)
            kept.append(jax.lax.dynamic_update_slice(keys, k, at))
            kept.append(jax.lax.dynamic_update_slice(values, v, at))
            scale, softcap = attention_scale(config), config.attention_softcap
            return attention(q, kept[0], kept[1], mask, scale=scale, softcap=softcap)

        x = decoder_layer(config, x, layer, projector(layer, adapter, None), rotary, attend, False)
        return x, (kept[0], kept[1])

    start = embed(params, config, token[:, None])
    x, cache = over_layers(one_layer, start, params, config, adapter, per_layer=cache)
    return rms_norm(x, params.final_norm, config), cache
