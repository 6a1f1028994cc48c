"""Rotary position embeddings (arXiv:2104.09864), with the frequency scaling of the config."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.rope_config import RopeScaling

Tables = tuple[jax.Array, jax.Array]  # cosine and sine, float32 [B, T, 1, W/2] each, W dimensions rotated


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
    """Compute the cosines and sines of the rotary angles of positions int32 [B, T].

    The frequencies of some kinds of scaling depend on the length of an example. It is the highest position of
    the example in its row, so examples that share a row do not change each other.
    """
    width = config.rotary_width
    exponent = jnp.arange(0, width, 2, dtype=jnp.float32) / width

    def tables(theta: float, scaling: RopeScaling | None) -> Tables:
        if scaling is None or not scaling.by_length:
            frequency = _scaled_frequency(theta, exponent, scaling)
        else:
            frequency = _frequency_by_length(theta, exponent, scaling, _example_lengths(positions))
        # float32, since bfloat16 holds whole numbers exactly only up to 256.
        angle = positions[..., None, None].astype(jnp.float32) * frequency
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        if scaling is None or scaling.attention_factor == 1:
            return cos, sin
        return cos * scaling.attention_factor, sin * scaling.attention_factor

    everywhere = tables(config.rope_theta, config.rope_scaling)
    if config.local_rope_theta is None:
        return Rotary(everywhere)
    # Gemma 3 scales only the layers that see everything; those with a window have a base of their own.
    return Rotary(everywhere, tables(config.local_rope_theta, None))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate heads by their tokens' positions, in float32.

    The first half of the rotated dimensions is paired with the second. Dimensions beyond them stay.

    Args:
        x: [B, T, heads, H].
        cos: float32 [B, T, 1, W/2].
        sin: float32 [B, T, 1, W/2].
    """
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rest.shape[-1]:
        parts.append(rest)
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def _scaled_frequency(theta: float, exponent: jax.Array, scaling: RopeScaling | None) -> jax.Array:
    """Return the frequencies [W/2] of a kind that does not depend on the length of a row.

    `llama3` follows `apply_scaling` of Meta's Llama 3.1 reference code, `yarn` that of its paper's authors.
    """
    frequency = 1.0 / theta**exponent
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    if scaling.kind == "yarn":
        kept = _yarn_kept(theta, 2 * exponent.shape[0], scaling)
        return frequency / scaling.factor * (1 - kept) + frequency * kept
    # Waves shorter than original_max_positions / high_freq_factor stay, those longer than
    # original_max_positions / low_freq_factor are stretched by `factor`; between the two, both are mixed.
    wavelength = 2 * math.pi / frequency
    smooth = scaling.original_max_positions / wavelength - scaling.low_freq_factor
    smooth = jnp.clip(smooth / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def _yarn_kept(theta: float, width: int, scaling: RopeScaling) -> jax.Array:
    """Return how much of each frequency yarn keeps, float32 [W/2]: 1 for fast ones, 0 for slow ones."""

    def dimension(turns: float) -> float:
        """Return the dimension whose frequency makes so many turns over the original positions."""
        positions = scaling.original_max_positions / (turns * 2 * math.pi)
        return width * math.log(positions) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    # Equal ends would be a division by zero; transformers widens them by as much.
    high = high + 0.001 if low == high else high
    ramp = (jnp.arange(width // 2, dtype=jnp.float32) - low) / (high - low)
    return 1 - jnp.clip(ramp, 0.0, 1.0)


def _frequency_by_length(
    theta: float, exponent: jax.Array, scaling: RopeScaling, lengths: jax.Array
) -> jax.Array:
    """Return the frequencies float32 [B, T, 1, W/2] of tokens.

    Args:
        theta: rotary base.
        exponent: float32 [W/2], exponents of the base.
        scaling: the scaling, of a kind that depends on the length.
        lengths: int32 [B, T], length of each token's example.
    """
    beyond = (lengths > scaling.original_max_positions)[..., None, None]
    if scaling.kind == "longrope":
        short, long = (
            jnp.asarray(factors, jnp.float32) for factors in (scaling.short_factors, scaling.long_factors)
        )
        return 1.0 / (jnp.where(beyond, long, short) * theta**exponent)
    # dynamic: the base grows so that the slowest frequency spans the row.
    width = 2 * exponent.shape[0]
    stretch = scaling.factor * lengths / scaling.original_max_positions - (scaling.factor - 1)
    base = theta * jnp.maximum(stretch, 1.0) ** (width / (width - 2))
    return 1.0 / jnp.where(beyond, base[..., None, None], theta) ** exponent


def _example_lengths(positions: jax.Array) -> jax.Array:
    """Return the length of each token's example, int32 [B, T]: its highest position in the row, and one."""
    # Each example, or group of examples with a common prefix, starts with position 0.
    example = jnp.cumsum(positions == 0, axis=1)

    def of_row(example: jax.Array, positions: jax.Array) -> jax.Array:
        return jax.ops.segment_max(positions, example, num_segments=positions.shape[0] + 1)[example]

    return jax.vmap(of_row)(example, positions) + 1
