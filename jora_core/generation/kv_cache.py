"""Keys and values of what was read and written: filled by a prefill, then grown by a token a step.

A prompt stands left in its slots and generated tokens from slot T on, the same slot for all rows: the
cache is written in one place, and a mask hides the padding between a short prompt's end and slot T. Positions
do not know the gap.

The cache is as large as a batch needs and no larger: rows x (prompt slots, a multiple of 64, and slots for
new tokens, a multiple of 32), at most `tokens_per_batch` slots or one row a device of the data axis. A slot
costs 2 x layers x key/value heads x head width numbers of the weights' type (`cache_bytes`): 512 KiB for
Llama-2-7B in bfloat16, so 8,192 slots are 4 GiB, split over the devices of the mesh (where there are fewer
key/value heads than devices of the tensor axis, each holds a head). It is donated from chunk to chunk and
written in place. Layers with a window keep all slots and mask those beyond it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jora_core.architecture.model_config import ModelConfig
from jora_core.generation.prompt_rows import Reading
from jora_core.model.attention_slots import Slots, reach
from jora_core.model.decoder import (
    Layer,
    attention_scale,
    decoder_layer,
    embed,
    model_attention,
    over_layers,
    projector,
    rms_norm,
)
from jora_core.model.dense_attention import attention
from jora_core.model.rotary import rotary_tables
from jora_core.parallel.collectives import tokens_split
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.common import AttentionChoice

Cache = tuple[jax.Array, jax.Array]  # keys and values of all layers, [L, B, C, K, H] each


def cache_bytes(config: ModelConfig, slots: int, bytes_per_number: int = 2) -> int:
    """Bytes of the keys and values of this many slots, over all devices that share them."""
    return 2 * config.num_layers * slots * config.num_kv_heads * config.head_dim * bytes_per_number


def prefill(
    params: Params,
    config: ModelConfig,
    adapter: Adapter | None,
    reading: Reading,
    capacity: int,
    choice: AttentionChoice,
) -> tuple[jax.Array, Cache]:
    """Hidden states of the rows as `forward` gives them, and a cache of `capacity` slots a prompt that holds
    its keys and values.
    """
    length = reading.tokens.shape[1]
    over_rows = model_attention(config, Slots(reading.until, reading.positions), choice)
    rotary = rotary_tables(config, reading.positions)
    split = tokens_split(length)

    def of_prompts(x: jax.Array) -> jax.Array:
        """[R, T, K, H] of the rows as [B, capacity, K, H]."""
        picked = x.reshape(-1, *x.shape[2:])[reading.path]
        return jnp.pad(picked, ((0, 0), (0, capacity - length), (0, 0), (0, 0)))

    def step(x: jax.Array, layer: Layer) -> tuple[jax.Array, Cache]:
        kept: list[jax.Array] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kept.extend((k, v))
            return over_rows(q, k, v, layer.window)

        x = decoder_layer(config, x, layer, projector(layer, adapter, None, split), rotary, attend, split)
        return x, (of_prompts(kept[0]), of_prompts(kept[1]))

    x, cache = over_layers(step, embed(params, config, reading.tokens), params, config, adapter)
    return rms_norm(x, params.final_norm, config), cache


def decode(
    params: Params,
    config: ModelConfig,
    adapter: Adapter | None,
    token: jax.Array,
    lengths: jax.Array,
    step: jax.Array,
    prompt_slots: int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Hidden state [B, 1, D] of the token [B] of this step, and the cache with its keys and values."""
    slot = jnp.arange(cache[0].shape[2])
    seen = (slot < lengths[:, None]) | ((slot >= prompt_slots) & (slot <= prompt_slots + step))
    ago = (
        lengths[:, None] + step - jnp.where(slot < prompt_slots, slot, lengths[:, None] + slot - prompt_slots)
    )
    rotary = rotary_tables(config, (lengths + step)[:, None])

    def one_layer(carry: tuple[jax.Array, Cache], layer: Layer) -> tuple[tuple[jax.Array, Cache], None]:
        x, cache = carry
        mask = (seen & (ago < reach(layer.window)))[:, None, :]
        grown: list[jax.Array] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            # The whole cache is carried and one slot of it written: as a layer's input and output it would be
            # copied at every step.
            at = (layer.index, 0, prompt_slots + step, 0, 0)
            for kept, fresh in zip(cache, (k, v), strict=True):
                grown.append(jax.lax.dynamic_update_slice(kept, fresh[None], at))
            keys, values = (jax.lax.dynamic_index_in_dim(x, layer.index, 0, False) for x in grown)
            scale, softcap = attention_scale(config), config.attention_softcap
            return attention(q, keys, values, mask, scale=scale, softcap=softcap)

        x = decoder_layer(config, x, layer, projector(layer, adapter, None), rotary, attend, False)
        return (x, (grown[0], grown[1])), None

    start = (embed(params, config, token[:, None]), cache)
    (x, cache), _ = over_layers(one_layer, start, params, config, adapter)
    return rms_norm(x, params.final_norm, config), cache
