"""The decoder: pure functions over stacked parameters, one `lax.scan` over layers.

Projections keep Hugging Face's orientation ``[out, in]`` behind a leading layer axis. Beside needing no
transposition when weights are read, merged or written, it is the fastest for training on a CPU: the weight
gradient of ``x Wᵀ`` comes out as one matmul, 1.5× the speed of the ``[in, out]`` form at 4,096 × 128 × 344.

Rotary positions use Hugging Face's layout (first half against second half of a head), norms run in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from jora_core.attention import attention, example_mask, mask_to_bias
from jora_core.config import ModelConfig, RopeScaling
from jora_core.sharding import BATCH, TENSOR, constrain, kv_repeats
from jora_core.spec import LORA_TARGETS

if TYPE_CHECKING:
    from jora_core.lora import Adapter, LoraWeights

Remat = Literal["none", "full"]


@flax.struct.dataclass
class LayerParams:
    """Weights of all layers, each with a leading layer axis L."""

    attention_norm: jax.Array  # [L, D]
    q_proj: jax.Array  # [L, N*H, D]
    k_proj: jax.Array  # [L, K*H, D]
    v_proj: jax.Array  # [L, K*H, D]
    o_proj: jax.Array  # [L, D, N*H]
    mlp_norm: jax.Array  # [L, D]
    gate_proj: jax.Array  # [L, F, D]
    up_proj: jax.Array  # [L, F, D]
    down_proj: jax.Array  # [L, D, F]


@flax.struct.dataclass
class Params:
    """Weights of one model; `head` is None where the output projection is the embedding (tied)."""

    embedding: jax.Array  # [V, D]
    layers: LayerParams
    final_norm: jax.Array  # [D]
    head: jax.Array | None = None  # [V, D]


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random weights: normal with `initializer_range`, ones for norms, outputs of both blocks scaled down
    by 1/√(2L) so that the residual stream keeps its variance over depth (GPT-2, section 2.3).
    """
    from jora_core.weights import layer_shapes

    def normal(stream: int, shape: tuple[int, ...], scale: float = 1.0) -> jax.Array:
        values = jax.random.normal(jax.random.fold_in(key, stream), shape, jnp.float32)
        return (values * (config.initializer_range * scale)).astype(dtype)

    residual = 1 / math.sqrt(2 * config.num_layers)
    layers = {}
    for i, (name, shape) in enumerate(layer_shapes(config).items()):
        shape = (config.num_layers, *shape)
        scale = residual if name in ("o_proj", "down_proj") else 1.0
        layers[name] = jnp.ones(shape, dtype) if name.endswith("_norm") else normal(i, shape, scale)
    vocab_shape = (config.vocab_size, config.hidden_size)
    return Params(
        embedding=normal(100, vocab_shape),
        layers=LayerParams(**layers),
        final_norm=jnp.ones((config.hidden_size,), dtype),
        head=None if config.tie_embeddings else normal(101, vocab_shape),
    )


def forward(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    suffix_ids: jax.Array,
    *,
    adapter: Adapter | None = None,
    dropout_key: jax.Array | None = None,
    remat: Remat = "none",
) -> jax.Array:
    """Hidden states after the final norm.

    Args:
        tokens, positions, segment_ids, suffix_ids: int32 [B, T]; see `jora_core.attention` for the mask rule.
        adapter: low-rank updates to add; gradients flow to it and, where asked for, to `params`.
        dropout_key: turns on the adapter's dropout (training); None is inference.
        remat: "full" keeps one residual a layer and recomputes the rest in the backward pass.

    Returns:
        [B, T, D] in the type of the weights.
    """
    bias = mask_to_bias(example_mask(segment_ids, suffix_ids))
    tables = rotary_tables(config, positions)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, bias)

    def step(x: jax.Array, layer: tuple[LayerParams, Any, jax.Array]) -> tuple[jax.Array, None]:
        weights, lora, index = layer
        project = projector(weights, lora, adapter, _layer_key(dropout_key, index))
        return decoder_layer(config, x, weights, project, tables, attend), None

    if remat == "full":
        step = jax.checkpoint(step, prevent_cse=False)
    x = embed(params, tokens)
    x, _ = jax.lax.scan(step, x, layer_inputs(params, config, adapter))
    return rms_norm(x, params.final_norm, config.norm_eps)


def unembed(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Logits of hidden states: [..., D] to float32 [..., V]."""
    head = params.embedding if params.head is None else params.head
    return jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """Token embeddings: int [B, T] to [B, T, D]."""
    return constrain(params.embedding[tokens], BATCH, None, None)


def layer_inputs(
    params: Params, config: ModelConfig, adapter: Adapter | None
) -> tuple[LayerParams, Any, jax.Array]:
    """What the scan over layers walks through: weights, adapter weights, layer number."""
    lora = {} if adapter is None else adapter.weights
    return params.layers, lora, jnp.arange(config.num_layers)


Projector = Callable[[str, jax.Array], jax.Array]


def projector(
    weights: LayerParams, lora: dict[str, LoraWeights], adapter: Adapter | None, key: jax.Array | None
) -> Projector:
    """The function (name, x [..., in]) → [..., out] of one layer: base weight plus its low-rank update."""

    def project(name: str, x: jax.Array) -> jax.Array:
        # Two axes only: the weight gradient of a [B, T, in] input would go through a materialised transpose.
        lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        out = (x @ getattr(weights, name).T).reshape(*lead, -1)
        if adapter is None or name not in lora:
            return out
        pair = lora[name]
        if key is not None and adapter.dropout > 0:
            x = dropout(x, adapter.dropout, jax.random.fold_in(key, LORA_TARGETS.index(name)))
        update = (x @ pair.a.astype(x.dtype).T) @ pair.b.astype(x.dtype).T
        return out + (update * adapter.scale).reshape(out.shape)

    return project


def decoder_layer(
    config: ModelConfig,
    x: jax.Array,
    weights: LayerParams,
    project: Projector,
    tables: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """One layer over the residual stream x [B, T, D]; `attend` takes rotated q, k and v, [B, T, heads, H]."""
    heads = (*x.shape[:2], -1, config.head_dim)
    y = rms_norm(x, weights.attention_norm, config.norm_eps)
    q = rotate(project("q_proj", y).reshape(heads), *tables)
    k = rotate(project("k_proj", y).reshape(heads), *tables)
    v = project("v_proj", y).reshape(heads)
    repeats = kv_repeats(config)
    if repeats > 1:  # fewer key/value heads than tensor shards: each shard gets its own copy
        k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    q, k, v = (constrain(a, BATCH, None, TENSOR, None) for a in (q, k, v))
    mixed = attend(q, k, v).reshape(*x.shape[:2], -1)
    x = constrain(x + project("o_proj", mixed), BATCH, None, None)
    y = rms_norm(x, weights.mlp_norm, config.norm_eps)
    gated = swiglu(project("gate_proj", y), project("up_proj", y))
    return constrain(x + project("down_proj", constrain(gated, BATCH, None, TENSOR)), BATCH, None, None)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, elementwise."""
    return jax.nn.silu(gate) * up


def _swiglu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = saved
    # Sigmoid once, and both results made before anything uses them: left alone, XLA's CPU compiler repeats
    # this arithmetic inside each of the four products that consume it (62 ms against 45 for a block's
    # backward pass).
    sigmoid = jax.lax.optimization_barrier(jax.nn.sigmoid(gate))
    silu = gate * sigmoid
    grads = grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu
    return jax.lax.optimization_barrier(grads)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def rotary_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles, float32 [B, T, 1, H/2] each."""
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequency = _scaled_frequency(1.0 / config.rope_theta**exponent, config.rope_scaling)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate heads [B, T, heads, H] by their position, first half of H against second half."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _scaled_frequency(frequency: jax.Array, scaling: RopeScaling | None) -> jax.Array:
    """Stretched rotary frequencies; llama3 as in Meta's Llama 3.1 reference code (`apply_scaling`)."""
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    wavelength = 2 * math.pi / frequency
    smooth = scaling.original_max_positions / wavelength - scaling.low_freq_factor
    smooth = jnp.clip(smooth / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zero elements of x with probability `rate` (to 1/65,536) and scale the rest up.

    Two 16-bit draws come from each random word: the generator is the larger part of an adapter's cost on a
    CPU.
    """
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    draws = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    keep = draws >= round(rate * 65536)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def _layer_key(key: jax.Array | None, index: jax.Array) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, index)
