"""The three Pallas kernels of attention over trees: output, gradient of q, gradients of k and v.

FlashAttention 2 (arXiv:2307.08691) with the one-column mask of `jora_core.model.attention_slots`. Each
program of a kernel owns one block of queries, or one of keys, and walks along the list of the blocks that
this one shares an allowed pair with (`jora_core.model.kernels.visible_blocks`). Blocks that are allowed as a
whole need no mask. Nothing is added up by two programs, so a result has the same bits in every run.

Scores, sums and gradients are float32. Exponentials are of base 2, which the hardware computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jora_core.model.attention_slots import MASKED

_LOG2_E = math.log2(math.e)


class Settings(NamedTuple):
    """Static settings of a kernel.

    Attributes:
        scale: factor of the scores.
        softcap: bound of the scores, None for none.
        windowed: whether there is an attention window.
        width: width H of a head.
        queries: slots of the block of queries.
        keys: slots of the block of keys.
    """

    scale: float
    softcap: float | None
    windowed: bool
    width: int
    queries: int
    keys: int


class RowRefs(NamedTuple):
    """The mask of one row: list of blocks and its counts, window, bound and position of each slot."""

    order: Any
    counts: Any
    limit: Any
    until: Any
    positions: Any


def tree_attention_output(settings: Settings, *refs: Any) -> None:
    """Compute the output of one block of queries, and the logarithm (base 2) of each query's sum.

    Args:
        settings: static settings.
        refs: `RowRefs`; q, k, v; then the results: output and logarithms.
    """
    rows, (q_ref, k_ref, v_ref, out_ref, log_ref) = RowRefs(*refs[:5]), refs[5:]
    start = pl.program_id(0) * settings.queries
    q = _load(settings, q_ref)

    def visit(masked: bool) -> Callable[..., Any]:
        def body(n: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            out, top, total = state
            key = rows.order[n] * settings.keys
            k, v = (_load(settings, ref, key, settings.keys) for ref in (k_ref, v_ref))
            scores, _ = _scores(settings, q, k, _visible(settings, rows, start, key) if masked else None)
            new_top = jnp.maximum(top, scores.max(axis=1))
            fade = jnp.exp2(top - new_top)
            weights = jnp.exp2(scores - new_top[:, None])
            total = total * fade + weights.sum(axis=1)
            out = out * fade[:, None] + _product(weights.astype(v.dtype), v, 1, 0)
            return out, new_top, total

        return body

    nothing = jnp.zeros(settings.queries, jnp.float32)
    state = (jnp.zeros(q.shape, jnp.float32), nothing + MASKED, nothing)
    out, top, total = _walk(rows.counts, visit, state)
    # A query that no key is allowed for (padding) has seen masked scores only, or no block at all. Its output
    # is zero, and the logarithm 0 gives its masked scores the weight 0 in the backward pass.
    seen = top > MASKED / 2
    _store(settings, out_ref, jnp.where(seen[:, None], out / jnp.where(seen, total, 1.0)[:, None], 0.0))
    log_ref[...] = jnp.where(seen, top + jnp.log2(jnp.where(seen, total, 1.0)), 0.0)


def tree_attention_d_q(settings: Settings, *refs: Any) -> None:
    """Compute the gradient of one block of queries.

    Args:
        settings: static settings.
        refs: `RowRefs`; q, k, v, the gradient of the output, the logarithms, the products of output and
            gradient; then the result.
    """
    rows, (q_ref, k_ref, v_ref, grad_ref, log_ref, inner_ref, d_q_ref) = RowRefs(*refs[:5]), refs[5:]
    start = pl.program_id(0) * settings.queries
    q, grad = _load(settings, q_ref), _load(settings, grad_ref)
    log_total, inner = log_ref[...][:, None], inner_ref[...][:, None]

    def visit(masked: bool) -> Callable[..., Any]:
        def body(n: jax.Array, d_q: jax.Array) -> jax.Array:
            key = rows.order[n] * settings.keys
            k, v = (_load(settings, ref, key, settings.keys) for ref in (k_ref, v_ref))
            visible = _visible(settings, rows, start, key) if masked else None
            _, d_scores = _score_gradients(settings, (q, k), (grad, v), log_total, inner, visible)
            return d_q + _product(d_scores.astype(k.dtype), k, 1, 0)

        return body

    d_q = _walk(rows.counts, visit, jnp.zeros(q.shape, jnp.float32))
    _store(settings, d_q_ref, d_q * settings.scale)


def tree_attention_d_kv(settings: Settings, *refs: Any) -> None:
    """Compute the gradients of one block of keys and values, summed over the query heads of their head.

    Args:
        settings: static settings.
        refs: `RowRefs`; q, k, v, the gradient of the output, the logarithms, the products of output and
            gradient, each of q's with all G query heads; then the results for k and v.
    """
    rows, (q_ref, k_ref, v_ref, grad_ref, log_ref, inner_ref, d_k_ref, d_v_ref) = RowRefs(*refs[:5]), refs[5:]
    key = pl.program_id(0) * settings.keys
    k, v = _load(settings, k_ref), _load(settings, v_ref)

    def of_head(head: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def visit(masked: bool) -> Callable[..., Any]:
            def body(n: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                d_k, d_v = state
                start = rows.order[n] * settings.queries
                at = pl.ds(start, settings.queries)
                q, grad = (_load(settings, ref, start, settings.queries, head) for ref in (q_ref, grad_ref))
                visible = _visible(settings, rows, start, key, keys_first=True) if masked else None
                # Scores of keys x queries: the products below then take their first operand as it is, from
                # registers, and have as many rows as the block of keys.
                log_total, inner = log_ref[head, at][None, :], inner_ref[head, at][None, :]
                weights, d_scores = _score_gradients(settings, (k, q), (v, grad), log_total, inner, visible)
                d_v = d_v + _product(weights.astype(grad.dtype), grad, 1, 0)
                d_k = d_k + _product(d_scores.astype(q.dtype), q, 1, 0)
                return d_k, d_v

            return body

        return _walk(rows.counts, visit, state)

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = jax.lax.fori_loop(0, log_ref.shape[0], of_head, (zeros, zeros))
    _store(settings, d_k_ref, d_k * settings.scale)
    _store(settings, d_v_ref, d_v)


def _walk(counts: Any, visit: Callable[[bool], Callable[..., Any]], state: Any) -> Any:
    """Visit the listed blocks: those allowed in part with the mask, those allowed as a whole without it."""
    part, visible = counts[0], counts[1]
    state = jax.lax.fori_loop(0, part, visit(True), state)
    return jax.lax.fori_loop(part, visible, visit(False), state)


def _visible(
    settings: Settings, rows: RowRefs, start: jax.Array, key: jax.Array, *, keys_first: bool = False
) -> jax.Array:
    """Return the mask of a block of queries from slot `start` and one of keys from slot `key` on."""
    here, there = pl.ds(start, settings.queries), pl.ds(key, settings.keys)

    def of_queries(x: jax.Array) -> jax.Array:
        return x[None, :] if keys_first else x[:, None]

    def of_keys(x: jax.Array) -> jax.Array:
        return x[:, None] if keys_first else x[None, :]

    query_slots = of_queries(start + jnp.arange(settings.queries))
    key_slots = of_keys(key + jnp.arange(settings.keys))
    visible = (key_slots <= query_slots) & (query_slots < of_keys(rows.until[there]))
    if settings.windowed:
        distance = of_queries(rows.positions[here]) - of_keys(rows.positions[there])
        visible = visible & (distance < rows.limit[0])
    return visible


def _scores(
    settings: Settings, a: jax.Array, b: jax.Array, visible: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Return the scores of two blocks for exponentials of base 2, and the soft-cap's derivative."""
    scores, slope = _product(a, b, 1, 1) * settings.scale, None
    if settings.softcap is not None:
        bounded = jnp.tanh(scores / settings.softcap)
        scores, slope = settings.softcap * bounded, 1 - bounded * bounded
    scores = scores * _LOG2_E
    return (scores if visible is None else jnp.where(visible, scores, MASKED)), slope


def _score_gradients(
    settings: Settings,
    scored: tuple[jax.Array, jax.Array],
    weighed: tuple[jax.Array, jax.Array],
    log_total: jax.Array,
    inner: jax.Array,
    visible: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the weights of two blocks, and the gradients of their scores before the factor `scale`.

    Args:
        settings: static settings.
        scored: the blocks whose product are the scores: of q and k, or of k and q.
        weighed: the blocks of the output's gradient and of v, in the same order.
        log_total: logarithms of the queries' sums, as a row or a column of the scores.
        inner: products of the queries' output and gradient, as a row or a column of the scores.
        visible: the mask, None where all is allowed.
    """
    scores, slope = _scores(settings, *scored, visible)
    weights = jnp.exp2(scores - log_total)
    d_scores = weights * (_product(*weighed, 1, 1) - inner)
    return weights, d_scores if slope is None else d_scores * slope


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Multiply two matrices over the given axes, with a float32 sum."""
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _load(
    settings: Settings, ref: Any, start: Any = 0, size: int | None = None, head: jax.Array | None = None
) -> jax.Array:
    """Load slots of a reference [slots, H], or of one head of [slots, G, H]; all slots if `size` is None."""
    rows = pl.ds(start, ref.shape[0] if size is None else size)
    at = ref.at[rows] if head is None else ref.at[rows, head]
    mask = _inside(settings, ref)
    return at[...] if mask is None else triton.load(at, mask=mask, other=0.0)


def _store(settings: Settings, ref: Any, value: jax.Array) -> None:
    """Store a block in the reference's type."""
    triton.store(ref, value.astype(ref.dtype), mask=_inside(settings, ref))


def _inside(settings: Settings, ref: Any) -> jax.Array | None:
    """Return which columns of a block exist, None if all do: a block is as wide as a power of two."""
    padded = ref.shape[-1]
    return None if padded == settings.width else (jnp.arange(padded) < settings.width)[None, :]
