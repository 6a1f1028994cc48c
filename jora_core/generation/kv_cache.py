"""The key/value cache: `prefill` fills the cache with the prompts, `decode` adds one token in each step.

A prompt begins at the first of its T slots. Generated tokens follow from slot T on, at the same slot for all
rows, so one slice update writes the cache. A mask hides the padding between the end of a short prompt and
slot T. Rotary positions are counted without this padding.

The cache has rows × (prompt slots, a multiple of 64, and slots for new tokens, a multiple of 32). This is at
most `tokens_per_batch` slots, or one row for each device of the data axis. A slot takes 2 × layers ×
key/value heads × head width numbers of the weights' type: 512 KiB for Llama-2-7B in bfloat16, so 8,192 slots
take 4 GiB, split over the devices of the mesh. Where there are fewer key/value heads than devices of the
tensor axis, each device holds one head. The cache is donated from chunk to chunk and written in place. Layers
with a window keep all slots and mask the slots outside of the window.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jora_core.architecture.model_config import ModelConfig
from jora_core.generation.prompt_rows import PromptRows
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
from jora_core.parallel.mesh import traced_platform
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.common import AttentionChoice

KVCache = tuple[jax.Array, jax.Array]  # keys and values of all layers, [L, B, C, K, H] each


class NewToken(NamedTuple):
    """The newest token of each row, the input of the next decoding step.

    Attributes:
        token: int32 [B], the token ids.
        prompt_lengths: int32 [B], tokens of each row's prompt.
        step: int32 scalar, number of the token within the answer.
        prompt_slots: T, the number of cache slots before the generated tokens.
    """

    token: jax.Array
    prompt_lengths: jax.Array
    step: jax.Array
    prompt_slots: int


def prefill(
    params: Params,
    config: ModelConfig,
    adapter: Adapter | None,
    prompts: PromptRows,
    capacity: int,
    choice: AttentionChoice,
) -> tuple[jax.Array, KVCache]:
    """Run the prompts through the model and fill a new cache with their keys and values.

    Args:
        params: weights, or this device's part of them.
        config: the model's.
        adapter: low-rank updates, None for the base model.
        prompts: the rows of B prompts.
        capacity: slots of the cache for each prompt, C, at least T.
        choice: attention kernel, see `jora_core.model.cudnn_attention`.

    Returns:
        Hidden states [R, T, D] of the rows, the same as from `forward`, and the cache.
    """
    length = prompts.tokens.shape[1]
    slots = Slots(prompts.until, prompts.positions)
    # On a CPU the first token would wait for the kernels to be loaded, longer than they save.
    loops = choice == "auto" and traced_platform() == "cpu"
    over_rows = model_attention(config, slots, "blockwise" if loops else choice, params.embedding.dtype)
    rotary = rotary_tables(config, prompts.positions)
    split = tokens_split(length)

    def of_prompts(x: jax.Array) -> jax.Array:
        """Gather [R, T, K, H] of the rows as [B, C, K, H] of the prompts."""
        # Behind a prompt's end the path is 0: what is gathered there is masked when tokens are decoded.
        picked = x.reshape(-1, *x.shape[2:])[prompts.path]
        return jnp.pad(picked, ((0, 0), (0, capacity - length), (0, 0), (0, 0)))

    def step(x: jax.Array, layer: Layer) -> tuple[jax.Array, KVCache]:
        keys_and_values: list[jax.Array] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            # Keys and values are stored here because the cache needs rotated keys.
            keys_and_values.extend((k, v))
            return over_rows(q, k, v, layer.window)

        project = projector(layer, adapter, None)
        x = decoder_layer(config, x, layer, project, rotary, attend=attend, split=split)
        keys, values = keys_and_values
        return x, (of_prompts(keys), of_prompts(values))

    x, cache = over_layers(step, embed(params, config, prompts.tokens), params, config, adapter)
    return rms_norm(x, params.final_norm, config), cache


def decode(
    params: Params, config: ModelConfig, adapter: Adapter | None, new: NewToken, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """Run one new token of each row through the model and add its keys and values to the cache.

    Args:
        params: weights, or this device's part of them.
        config: the model's.
        adapter: low-rank updates, None for the base model.
        new: the tokens and their positions.
        cache: keys and values of all earlier tokens.

    Returns:
        Hidden states [B, 1, D] of the tokens, and the cache with their keys and values.
    """
    lengths, first_new = new.prompt_lengths[:, None], new.prompt_slots
    own_slot = first_new + new.step
    slot = jnp.arange(cache[0].shape[2])
    visible = (slot < lengths) | ((slot >= first_new) & (slot <= own_slot))
    # Generated tokens continue the positions of their own prompt, although their slots begin at T.
    key_positions = jnp.where(slot < first_new, slot, lengths + slot - first_new)
    distance = lengths + new.step - key_positions
    rotary = rotary_tables(config, (new.prompt_lengths + new.step)[:, None])

    def one_layer(carry: tuple[jax.Array, KVCache], layer: Layer) -> tuple[tuple[jax.Array, KVCache], None]:
        x, cache = carry
        mask = (visible & (distance < reach(layer.window)))[:, None, :]
        grown: list[jax.Array] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            # The cache of all layers is carried through the scan and one slot of it is written. As an input
            # and output of the scan, each layer's part would be copied at every step.
            at = (layer.index, 0, own_slot, 0, 0)
            for old, fresh in zip(cache, (k, v), strict=True):
                grown.append(jax.lax.dynamic_update_slice(old, fresh[None], at))
            keys, values = (jax.lax.dynamic_index_in_dim(x, layer.index, 0, False) for x in grown)
            scale, softcap = attention_scale(config), config.attention_softcap
            # One query for each row: its scores are small, and blocks would save nothing.
            return attention(q, keys, values, mask, scale=scale, softcap=softcap)

        # A single token cannot be split over devices.
        project = projector(layer, adapter, None)
        x = decoder_layer(config, x, layer, project, rotary, attend=attend, split=False)
        return (x, (grown[0], grown[1])), None

    start = (embed(params, config, new.token[:, None]), cache)
    (x, cache), _ = over_layers(one_layer, start, params, config, adapter)
    return rms_norm(x, params.final_norm, config), cache
