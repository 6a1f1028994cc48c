"""Logits of a model that is never whole in memory, computed with one layer from the files at a time.

These logits verify an export. Everything is computed in float32, independent of the type in the files, so
that two models differ only by the rounding of their stored weights. In memory there are one layer in float32
and some rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_rows
from jora_core.model.attention_slots import Slots
from jora_core.model.decoder import Layer, attention_scale, decoder_layer, projector, rms_norm
from jora_core.model.dense_attention import attention, example_mask
from jora_core.model.rotary import rotary_tables
from jora_core.parameters.freed_memory import trim_freed_memory
from jora_core.parameters.trees import Adapter, LayerParams, LoraWeights
from jora_core.weights.merge_adapters import MergedWeights, on_host


def hidden_states(weights: MergedWeights, tokens: np.ndarray, adapter: Adapter | None = None) -> jax.Array:
    """Compute the hidden states after the final norm. Each row is one causal sequence.

    Args:
        weights: the model's weights, with or without merged adapters.
        tokens: int [B, T].
        adapter: adapter that is computed beside the weights instead of merged; None for none.

    Returns:
        Hidden states float32 [B, T, D].
    """
    config, store = weights.config, weights.store
    adapter = None if adapter is None else on_host(adapter)
    table = {row.field: row for row in model_rows(config) if not row.per_layer}
    # Only the rows of tokens that occur: a large vocabulary's embedding may not fit in memory in float32.
    used, places = np.unique(tokens, return_inverse=True)
    name = table["embedding"].name()
    rows = np.concatenate([store.read(name, (slice(i, i + 1), slice(None))) for i in used.tolist()])
    # On the host: on a device, each of these steps would be a program to compile.
    embedded = rows.astype(np.float32)[places.reshape(tokens.shape)]
    if config.embedding_scale is not None:
        embedded = embedded * np.float32(config.embedding_scale)
    x = jnp.asarray(embedded)
    # Else a GPU multiplies float32 in TF32, whose rounding is larger than what the comparison looks for.
    with jax.default_matmul_precision("highest"):
        scale = 1.0 if adapter is None else adapter.scale
        programs: dict[tuple[str, ...], Any] = {}
        for number in range(config.num_layers):
            lora = {} if adapter is None else jax.tree.map(lambda a, i=number: a[i], adapter.weights)
            # A value and not a part of the program, which all layers share.
            window = np.int32(config.windows[number] if config.windows else 0)
            shapes = weights.layer_shapes(number)
            # Layers of a checkpoint that mixes types differ.
            key = tuple(leaf.dtype.name for leaf in jax.tree.leaves(shapes))
            if key not in programs:
                # Before the layer is read: compiling takes more memory than most layers.
                programs[key] = _one_layer.lower(config, scale, window, x, shapes, lora).compile()
                trim_freed_memory()
            # Wait before the next layer is read: dispatch is asynchronous, and two layers would be in memory.
            x = jax.block_until_ready(programs[key](window, x, weights.layer(number), lora))
            trim_freed_memory()
        return rms_norm(x, jnp.asarray(store.read(table["final_norm"].name()), jnp.float32), config)


def logits(weights: MergedWeights, hidden: jax.Array) -> Iterator[np.ndarray]:
    """Yield the logits of hidden states [..., D], a part of the vocabulary at a time: float32 [..., v]."""
    config = weights.config
    table = {row.field: row for row in model_rows(config)}
    for rows in weights.rows(table["embedding" if config.tie_embeddings else "head"]):
        with jax.default_matmul_precision("highest"):
            part = jnp.einsum("...d,vd->...v", hidden, jnp.asarray(rows, jnp.float32))
        cap = config.logit_softcap
        yield np.asarray(part if cap is None else cap * jnp.tanh(part / cap))


# Compiled once and not for each layer: the layer's number is no argument, and its window is a value.
@partial(jax.jit, static_argnums=(0, 1))
def _one_layer(
    config: ModelConfig,
    scale: float,
    window: jax.Array,
    x: jax.Array,
    weights: LayerParams,
    lora: dict[str, LoraWeights],
) -> jax.Array:
    """Compute one decoder layer over [B, T, D], with the adapter's matrices of the layer, or {} for none."""
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), weights)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    # Each row is one causal sequence without padding, so every key is visible up to the end.
    slots = Slots(jnp.full_like(positions, x.shape[1]), positions)

    # Dense: for a few tokens, a smaller program than that of blocks, whose compilation takes more memory.
    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        factor, softcap = attention_scale(config), config.attention_softcap
        return attention(q, k, v, example_mask(slots, window), scale=factor, softcap=softcap)

    # The index seeds the dropout of the adapter's input, which is off here; so 0 does for each layer.
    layer = Layer(weights, lora, jnp.int32(0), window)
    project = projector(layer, Adapter(weights={}, scale=scale), None)
    return decoder_layer(
        config, x, layer, project, rotary_tables(config, positions), attend=attend, split=False
    )
