"""Choice of the next token: the most likely token, or a random draw after temperature, top-k and top-p.

Temperature, top-k and top-p are applied in this order, with the same rules as in transformers. Top-k keeps
all tokens that are at least as likely as the k-th. Then top-p keeps the fewest most likely tokens whose
probabilities add up to p (nucleus sampling, Holtzman et al., arXiv:1904.09751).

A draw depends only on (seed, number of the prompt, step). So an answer depends neither on the other prompts
of its batch nor on the mesh.
"""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from jora_core.specs.answers import SamplingSpec

# The method determines the compiled program. The values of the settings are arguments of the program.
SamplingMethod = Literal["greedy", "draw", "filter"]
# Finite, so that a row with every token excluded still gives a token and no NaN. Its probability is 0.
EXCLUDED = -1e30


@flax.struct.dataclass
class SamplingSettings:
    """A `SamplingSpec` as scalar arrays, so that other values need no new program."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    seed: jax.Array


def sampling_settings(spec: SamplingSpec) -> SamplingSettings:
    """Return the sampling settings of a spec as scalar arrays."""
    return SamplingSettings(
        temperature=jnp.float32(spec.temperature),
        top_k=jnp.int32(spec.top_k),
        top_p=jnp.float32(spec.top_p),
        seed=jnp.uint32(spec.seed),
    )


def sampling_method(spec: SamplingSpec) -> SamplingMethod:
    """Return the cheapest sampling method for a spec.

    Only `filter` sorts the vocabulary, and the sort takes most of the time of sampling.
    """
    if spec.temperature == 0:
        return "greedy"
    return "filter" if spec.top_k > 0 or spec.top_p < 1 else "draw"


def next_tokens(
    logits: jax.Array,
    settings: SamplingSettings,
    numbers: jax.Array,
    step: jax.Array,
    method: SamplingMethod,
) -> jax.Array:
    """Choose one token for each row.

    Args:
        logits: float32 [B, V], the whole vocabulary.
        settings: ignored by the method `greedy`.
        numbers: uint32 [B], seed number of each prompt's random draws.
        step: int32 scalar or [B], number of this token within the answer.
        method: `sampling_method` of the spec. `greedy` takes the lowest id among equal logits.

    Returns:
        Token ids int32 [B].
    """
    if method == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Subtract the maximum first: large logits divided by a small temperature would overflow.
    scores = (logits - logits.max(axis=-1, keepdims=True)) / settings.temperature
    if method == "filter":
        scores = filtered(scores, settings.top_k, settings.top_p)

    def draw(scores: jax.Array, number: jax.Array, step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), number), step)
        return jax.random.categorical(key, scores)

    steps = jnp.broadcast_to(step, numbers.shape)
    return jax.vmap(draw)(scores, numbers, steps).astype(jnp.int32)


def filtered(scores: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Exclude tokens by top-k, then by top-p. The most likely token always stays.

    Args:
        scores: float32 [B, V].
        top_k: int32 scalar, 0 for no limit.
        top_p: float32 scalar, 1 for no limit. Of equally likely tokens at the limit, lower ids stay.

    Returns:
        Scores float32 [B, V], with EXCLUDED for each excluded token.
    """
    size = scores.shape[-1]
    by_score = jnp.argsort(-scores, axis=-1, stable=True)
    ranked = jnp.take_along_axis(scores, by_score, axis=-1)
    last = jnp.where(top_k > 0, jnp.minimum(top_k, size), size) - 1
    kept = ranked >= jnp.take(ranked, last, axis=-1)[:, None]
    probabilities = jax.nn.softmax(jnp.where(kept, ranked, EXCLUDED), axis=-1)
    # Probability of all tokens ranked higher. The cumulative sum of a large vocabulary may round to less than
    # 1, so top_p = 1 is handled separately and excludes nothing.
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept &= (mass_before < top_p) | (top_p >= 1)
    # For top_p = 0, which would cut every token.
    kept = kept.at[:, 0].set(True)
    rows = jnp.arange(len(scores))[:, None]
    return jnp.where(jnp.zeros_like(kept).at[rows, by_score].set(kept), scores, EXCLUDED)


def exclude_tokens(logits: jax.Array, ids: jax.Array, when: jax.Array) -> jax.Array:
    """Exclude tokens if a condition is true.

    Args:
        logits: float32 [B, V].
        ids: int32 [E], the tokens to exclude; may be empty.
        when: bool scalar, the condition.
    """
    return jnp.where(when, logits.at[:, ids].set(EXCLUDED), logits)
