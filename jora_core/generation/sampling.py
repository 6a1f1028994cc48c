"""The next token of each row: the likeliest, or drawn after temperature, top-k and top-p, in that order.

The order and the cuts are those of transformers: all tokens as likely as the k-th stay in (top-k), then the
fewest likeliest tokens whose probabilities add up to p (nucleus sampling, Holtzman et al., arXiv:1904.09751).
A draw follows from (seed, number of the prompt, step) alone: a prompt's answer depends neither on its
neighbours in a batch nor on the mesh.
"""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from jora_core.specs.answers import SamplingSpec

# Which program is compiled; the settings' values are arguments of it.
Method = Literal["greedy", "draw", "filter"]
# Finite: what is ruled out has probability 0, and a row in which all is ruled out still gives a token.
RULED_OUT = -1e30


@flax.struct.dataclass
class Settings:
    """`SamplingSpec` as scalars on the device."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    seed: jax.Array


def settings_of(spec: SamplingSpec) -> Settings:
    """The settings of a spec as arrays."""
    return Settings(
        temperature=jnp.float32(spec.temperature),
        top_k=jnp.int32(spec.top_k),
        top_p=jnp.float32(spec.top_p),
        seed=jnp.uint32(spec.seed),
    )


def method_of(spec: SamplingSpec) -> Method:
    """What a spec needs: sorting the vocabulary costs more than all else here, so only where it cuts."""
    if spec.temperature == 0:
        return "greedy"
    return "filter" if spec.top_k > 0 or spec.top_p < 1 else "draw"


def next_tokens(
    logits: jax.Array, settings: Settings, numbers: jax.Array, step: jax.Array, method: Method
) -> jax.Array:
    """One token a row: int32 [B].

    Args:
        logits: float32 [B, V], whole vocabulary.
        numbers: uint32 [B], one for each prompt; step: int32 scalar or [B], tokens already written.
        method: `method_of` the settings. Greedy takes the lowest id of equals.
    """
    if method == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Differences first: dividing large logits by a small temperature would overflow.
    scores = (logits - logits.max(axis=-1, keepdims=True)) / settings.temperature
    if method == "filter":
        scores = filtered(scores, settings.top_k, settings.top_p)

    def draw(scores: jax.Array, number: jax.Array, step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), number), step)
        return jax.random.categorical(key, scores)

    steps = jnp.broadcast_to(step, numbers.shape)
    return jax.vmap(draw)(scores, numbers, steps).astype(jnp.int32)


def filtered(scores: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Scores [B, V] with RULED_OUT for what top-k (0: all), then top-p cut; the likeliest token always stays.

    Of equally likely tokens at the edge of top-p, those of lower id stay.
    """
    size = scores.shape[-1]
    order = jnp.argsort(-scores, axis=-1, stable=True)
    ranked = jnp.take_along_axis(scores, order, axis=-1)
    last = jnp.where(top_k > 0, jnp.minimum(top_k, size), size) - 1
    kept = ranked >= jnp.take(ranked, last, axis=-1)[:, None]
    probabilities = jax.nn.softmax(jnp.where(kept, ranked, RULED_OUT), axis=-1)
    likelier = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept &= (likelier < top_p) | (top_p >= 1)
    kept = kept.at[:, 0].set(True)
    rows = jnp.arange(len(scores))[:, None]
    return jnp.where(jnp.zeros_like(kept).at[rows, order].set(kept), scores, RULED_OUT)


def rule_out(logits: jax.Array, ids: jax.Array, when: jax.Array) -> jax.Array:
    """Logits [B, V] without these ids [E] where the scalar `when` holds."""
    return jnp.where(when, logits.at[:, ids].set(RULED_OUT), logits)
