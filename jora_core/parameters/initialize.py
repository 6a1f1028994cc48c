"""Initialization of a model's weights and of an adapter."""

from __future__ import annotations

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import layer_shapes, projection_shape
from jora_core.parameters.lora_math import row_norms
from jora_core.parameters.quantization import dense
from jora_core.parameters.trees import Adapter, LayerParams, LoraWeights, Params
from jora_core.specs.adapter_targets import Ranks, check_patterns, layer_ranks, lora_targets
from jora_core.specs.lora import LoraSpec


def init_adapter(
    config: ModelConfig,
    spec: LoraSpec,
    key: jax.Array,
    dtype: Any = jnp.float32,
    params: Params | None = None,
) -> Adapter:
    """Make a new adapter whose update is zero: random A, uniform in ±1/√in, and zero B.

    A is drawn as in PEFT (Kaiming with a=√5, or normal with deviation 1/r for `gaussian`). It is zero in the
    layers that get no adapter, and beyond the rank of a layer.

    Args:
        config: the base model's.
        spec: rank, scale, dropout and targets.
        key: random key of A.
        dtype: type of A, B and the magnitudes.
        params: the base weights, whose row norms are DoRA's first magnitudes; needed only for DoRA.

    Raises:
        InputError: `spec.target_modules` does not fit this model.
        ValueError: DoRA without `params`.
    """
    if spec.use_dora and params is None:
        raise ValueError("a new DoRA adapter starts from the base's row norms: give params")
    weights = {}
    targets = lora_targets(spec, config)
    check_patterns(spec, targets, config.num_layers)
    ranks = layer_ranks(spec, targets, config.num_layers)
    for target in targets:
        of_layers = jnp.asarray([rank for rank, _ in ranks[target]])[:, None, None]
        widest = max(rank for rank, _ in ranks[target])
        out_width, in_width = projection_shape(config, target)
        bound = 1 / math.sqrt(in_width)
        # The key depends on the name alone, so a target keeps its start when another is added.
        target_key = jax.random.fold_in(key, zlib.crc32(target.encode()))
        shape = (config.num_layers, widest, in_width)
        if spec.init_lora_weights == "gaussian":
            a = jax.random.normal(target_key, shape, dtype) / jnp.maximum(of_layers, 1).astype(dtype)
        else:
            a = jax.random.uniform(target_key, shape, dtype, -bound, bound)
        # With A and B zero, both gradients are zero: these rows stay as they are, or whole layers.
        a = jnp.where(jnp.arange(widest)[:, None] < of_layers, a, jnp.zeros((), dtype))
        magnitude = None
        if spec.use_dora and params is not None:
            # One layer at a time: the float32 copy that the norms need is as large as the weight.
            magnitude = jax.lax.map(lambda w: row_norms(dense(w)), getattr(params.layers, target)).astype(
                dtype
            )
        b = jnp.zeros((config.num_layers, out_width, widest), dtype)
        weights[target] = LoraWeights(a=a, b=b, magnitude=magnitude)
    scales = other_scales(ranks, spec.scale)
    return Adapter(weights=weights, scale=spec.scale, dropout=spec.lora_dropout, scales=scales)


def other_scales(ranks: Ranks, scale: float) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return the field `scales` of an adapter.

    Args:
        ranks: rank and scale of each layer, by target.
        scale: the scale of all other layers.
    """
    return tuple(
        (target, tuple(factor for _, factor in layers))
        for target, layers in ranks.items()
        if any(factor != scale for _, factor in layers)
    )


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Make random weights: normal matrices with standard deviation `initializer_range`, zero biases.

    Norms start with the factor 1. The output projections of attention and MLP are scaled by 1/√(2L), so that
    the variance of the residual stream does not grow with depth (GPT-2, section 2.3).

    Args:
        config: the model's.
        key: random key, from which the key of each tensor is derived.
        dtype: type of the weights, which are drawn in float32 and cast.
    """

    # Drawn in float32 and then cast: a key gives the same values in every type, but for rounding.
    def normal(stream: int, shape: tuple[int, ...], scale: float = 1.0) -> jax.Array:
        values = jax.random.normal(jax.random.fold_in(key, stream), shape, jnp.float32)
        return (values * (config.initializer_range * scale)).astype(dtype)

    neutral = 0.0 if config.norm_offset else 1.0
    residual = 1 / math.sqrt(2 * config.num_layers)
    layers = {}
    # The position seeds the values: a row in the middle of the table changes those of the rows after it.
    for i, (name, shape) in enumerate(layer_shapes(config).items()):
        shape = (config.num_layers, *shape)
        if name.endswith("_norm"):
            layers[name] = jnp.full(shape, neutral, dtype)
        elif name.endswith("_bias"):
            layers[name] = jnp.zeros(shape, dtype)
        else:
            layers[name] = normal(i, shape, residual if name in ("o_proj", "down_proj") else 1.0)
    vocab_shape = (config.vocab_size, config.hidden_size)
    return Params(
        # 100 and 101 are numbers that no tensor of a layer reaches.
        embedding=normal(100, vocab_shape),
        layers=LayerParams(**layers),
        final_norm=jnp.full((config.hidden_size,), neutral, dtype),
        head=None if config.tie_embeddings else normal(101, vocab_shape),
    )
