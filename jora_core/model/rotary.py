"""Rotary position embeddings (arXiv:2104.09864), with the frequency scaling of the config."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.rope_config import RopeScaling

Tables = tuple[jax.Array, jax.Array]  # cosine and sine, float32 [B, T, 1, H/2] each


@dataclass(frozen=True)
class Rotary:
    """Rotary tables of a batch, with separate tables for layers with a window in Gemma 3."""

    everywhere: Tables
    windowed: Tables | None = None

    def of(self, window: jax.Array | int) -> Tables:
        """Return the rotary tables of a layer with a given window, which may be a traced value."""
        if self.windowed is None:
            return self.everywhere
        cos, sin = (
            jnp.where(jnp.asarray(window) > 0, a, b)
            for a, b in zip(self.windowed, self.everywhere, strict=True)
        )
        return cos, sin


def rotary_tables(config: ModelConfig, positions: jax.Array) -> Rotary:
    """Compute the cosines and sines of the rotary angles of positions int32 [B, T]."""
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim

    def tables(theta: float, scaling: RopeScaling | None) -> Tables:
        # float32, since bfloat16 holds whole numbers exactly only up to 256.
        angle = positions[..., None, None].astype(jnp.float32) * _scaled_frequency(
            1.0 / theta**exponent, scaling
        )
        return jnp.cos(angle), jnp.sin(angle)

    everywhere = tables(config.rope_theta, config.rope_scaling)
    if config.local_rope_theta is None:
        return Rotary(everywhere)
    # Gemma 3 scales only the layers that see everything; those with a window have a base of their own.
    return Rotary(everywhere, tables(config.local_rope_theta, None))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate heads by their tokens' positions, in float32. The first half of H is paired with the second.

    Args:
        x: [B, T, heads, H].
        cos: float32 [B, T, 1, H/2].
        sin: float32 [B, T, 1, H/2].
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _scaled_frequency(frequency: jax.Array, scaling: RopeScaling | None) -> jax.Array:
    """Scale rotary frequencies; `llama3` follows `apply_scaling` of Meta's Llama 3.1 reference code."""
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    # Waves shorter than original_max_positions / high_freq_factor stay, those longer than
    # original_max_positions / low_freq_factor are stretched by `factor`; between the two, both are mixed.
    wavelength = 2 * math.pi / frequency
    smooth = scaling.original_max_positions / wavelength - scaling.low_freq_factor
    smooth = jnp.clip(smooth / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency
