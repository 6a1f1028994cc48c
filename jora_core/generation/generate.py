"""Generation: prompts are read into a key/value cache, then tokens are written one a step, in chunks.

Prompts are sorted into few lengths, so few programs are compiled: for each, one that reads the prompts and
one that writes tokens up to any number. Between two chunks the host sees what was written: an answer ends at
a stop string there, or is shown while it grows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.row_packing import choose_row_lengths, rows_of
from jora_core.data.shared_context import token_order
from jora_core.generation.kv_cache import Cache, decode, prefill
from jora_core.generation.prompt_rows import Reading, read_prompts
from jora_core.generation.sampling import Method, Settings, method_of, next_tokens, rule_out, settings_of
from jora_core.model.answer_loss import pick_positions
from jora_core.model.decoder import unembed
from jora_core.parallel.collectives import gather_vocabulary, per_device, sum_over_batch
from jora_core.parallel.mesh import current_mesh, data_shards
from jora_core.parallel.placements import batch_sharding, cache_sharding, model_shardings, replicated
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.answers import SamplingSpec
from jora_core.specs.common import AttentionChoice

GREEDY = SamplingSpec()  # type: ignore[call-arg]
# Tokens between two looks at what was written, where somebody looks.
CHUNK = 16
# Slots for new tokens are a multiple of this: a longest answer of its own needs no program of its own.
NEW_STEP = 32


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[np.ndarray],
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    min_new_tokens: int = 0,
    tokens_per_batch: int = 8192,
    adapter: Adapter | None = None,
    sampling: SamplingSpec = GREEDY,
    numbers: Sequence[int] | None = None,
    contexts: Sequence[str] | None = None,
    watch: Callable[[int, np.ndarray], bool] | None = None,
    chunk: int = CHUNK,
    attention: AttentionChoice = "auto",
    on_rows: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Continue each prompt until an end token, `max_new_tokens`, or until `watch` has seen enough.

    Args:
        prompts: int32 [T] each, at least one token, special tokens included.
        eos_ids: any of these ends an answer, but none before `min_new_tokens`; it is not part of it.
        tokens_per_batch: padded slots of one batch, prompt and answer.
        sampling: how a token is chosen.
        numbers: one number below 2³² a prompt, from which its draws follow; its place if None.
        contexts: the context of each prompt: those of one context in a batch share the reading of what they
            begin with; None or "" for none.
        watch: told, every `chunk` tokens, a prompt's place and its new tokens; True ends its answer there. A
            batch ends with its last row.
        attention: of the prompts, see `jora_core.model.cudnn_attention`.
        on_rows: told how many prompts have just been answered.

    Returns:
        int32 tokens per prompt, in the order given.
    """
    answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    if not prompts:
        return answers
    writer = Writer(
        params,
        adapter,
        config,
        jnp.asarray(sorted(set(eos_ids)), jnp.int32),
        settings_of(sampling),
        method_of(sampling),
        current_mesh(),
        min_new_tokens,
        max_new_tokens,
        attention,
    )
    drawn = np.asarray(range(len(prompts)) if numbers is None else numbers, np.uint32)
    for chosen, batch in _batches(
        prompts, contexts or [""] * len(prompts), drawn, writer.spare, tokens_per_batch
    ):

        def tell(row: int, tokens: np.ndarray, chosen: np.ndarray = chosen) -> bool:
            return watch is not None and watch(int(chosen[row]), tokens)

        written = writer.write(*batch, tell, max_new_tokens if watch is None else chunk)
        for number, answer in zip(chosen, written, strict=False):
            answers[number] = answer
        if on_rows is not None:
            on_rows(len(chosen))
    return answers


def _batches(
    prompts: Sequence[np.ndarray],
    contexts: Sequence[str],
    numbers: np.ndarray,
    spare: int,
    tokens_per_batch: int,
) -> Iterator[tuple[np.ndarray, tuple[Reading, np.ndarray, np.ndarray]]]:
    """Places of the prompts of each batch, and of the batch: how it is read, lengths [B], numbers [B].

    Prompts of length 0 fill a batch up.
    """
    sizes = np.asarray([len(prompt) for prompt in prompts])
    # What may be shared comes together.
    keys = [(of, token_order(prompt) if of else b"") for of, prompt in zip(contexts, prompts, strict=True)]
    order = np.asarray(sorted(range(len(prompts)), key=keys.__getitem__))
    shards = data_shards()
    shorter = 0
    for length in choose_row_lengths(sizes, tokens_per_batch):
        inside = order[(sizes[order] > shorter) & (sizes[order] <= length)]
        shorter = length
        fit = rows_of(length + spare, tokens_per_batch)
        height = -(-min(fit, max(len(inside), 1)) // shards) * shards
        for start in range(0, len(inside), height):
            chosen = inside[start : start + height]
            texts, of = [prompts[int(n)] for n in chosen], [contexts[int(n)] for n in chosen]
            lengths, draws = np.zeros(height, np.int32), np.zeros(height, np.uint32)
            lengths[: len(chosen)], draws[: len(chosen)] = sizes[chosen], numbers[chosen]
            yield chosen, (read_prompts(texts, of, length, height, shards), lengths, draws)


@flax.struct.dataclass
class State:
    """Where the rows of a batch are after `step` tokens: the last `token` [B], all of them `new` [B, C - T],
    how many of them `counts` [B]; rows that are `done` [B] write on, for nobody.
    """

    step: jax.Array
    token: jax.Array
    done: jax.Array
    new: jax.Array
    counts: jax.Array


@flax.struct.dataclass
class Order:
    """What stays the same while a batch is written; arrays, so that other values need no other program."""

    lengths: jax.Array  # [B]
    numbers: jax.Array  # [B]
    ends: jax.Array
    least: jax.Array
    settings: Settings


@dataclass(frozen=True)
class Writer:
    """A model, and how its answers are written."""

    params: Params
    adapter: Adapter | None
    config: ModelConfig
    ends: jax.Array
    settings: Settings
    method: Method
    mesh: Mesh
    least: int
    most: int
    attention: AttentionChoice = "auto"

    @property
    def spare(self) -> int:
        """Slots for new tokens."""
        return -(-self.most // NEW_STEP) * NEW_STEP

    def order(self, lengths: np.ndarray, numbers: np.ndarray) -> Order:
        """What a batch of these prompts is written by."""
        bounds = (self.ends, jnp.int32(self.least), self.settings)
        return Order(jnp.asarray(lengths), jnp.asarray(numbers), *bounds)

    def write(
        self,
        reading: Reading,
        lengths: np.ndarray,
        numbers: np.ndarray,
        tell: Callable[[int, np.ndarray], bool],
        chunk: int,
    ) -> list[np.ndarray]:
        """Answers to the prompts of one batch, its filling included."""
        model = (self.params, self.adapter)
        static = (self.config, self.method, self.mesh)
        order = self.order(lengths, numbers)
        state, cache = _begin(*model, reading, order, *static, self.spare, self.attention)
        told = np.zeros(len(lengths), np.int32)
        over = np.zeros(len(lengths), bool)
        until = 1
        while True:
            new, counts, done = jax.device_get((state.new, state.counts, state.done))
            for row in np.flatnonzero(~over & (counts > told)):
                fresh, told[row] = new[row, told[row] : counts[row]], counts[row]
                over[row] = tell(int(row), fresh)
            if until == self.most or (done | over).all():
                return [answer[:count] for answer, count in zip(new, counts, strict=True)]
            until = min(until + chunk, self.most)
            state, cache = _go_on(*model, state, cache, over, order, until, *static)


@partial(jax.jit, static_argnames=("config", "method", "mesh", "spare", "attention"))
def _begin(
    params: Params,
    adapter: Adapter | None,
    reading: Reading,
    order: Order,
    config: ModelConfig,
    method: Method,
    mesh: Mesh,
    spare: int,
    attention: AttentionChoice,
) -> tuple[State, Cache]:
    """Read the prompts and choose the first token of each answer."""

    def begin(params: Params, adapter: Adapter | None, reading: Reading, order: Order) -> tuple[State, Cache]:
        lengths, slots = order.lengths, reading.tokens.shape[1]
        hidden, cache = prefill(params, config, adapter, reading, slots + spare, attention)
        last = jnp.take_along_axis(reading.path, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        step = jnp.zeros((), jnp.int32)
        token = _choose(params, config, pick_positions(hidden, last[None], slots)[0], step, order, method)
        new = jnp.zeros((len(lengths), spare), jnp.int32) + 0 * lengths[:, None]
        empty = State(step, token, lengths == 0, new, jnp.zeros_like(lengths))
        return _noted(empty, token, order.ends), cache

    rows = batch_sharding(mesh)
    read = Reading(rows, rows, rows, rows)  # type: ignore[arg-type]
    places = (*model_shardings(config, params, adapter, mesh), read, _order_places(mesh))
    return per_device(begin, mesh, places, _state_places(mesh))(params, adapter, reading, order)


@partial(jax.jit, static_argnames=("config", "method", "mesh"), donate_argnames="cache")
def _go_on(
    params: Params,
    adapter: Adapter | None,
    state: State,
    cache: Cache,
    over: jax.Array,
    order: Order,
    until: jax.Array,
    config: ModelConfig,
    method: Method,
    mesh: Mesh,
) -> tuple[State, Cache]:
    """Write tokens up to number `until`, or until all rows are done; rows that are `over` [B] are."""

    def go_on(
        params: Params,
        adapter: Adapter | None,
        state: State,
        cache: Cache,
        over: jax.Array,
        order: Order,
        until: jax.Array,
    ) -> tuple[State, Cache]:
        def more(carry: tuple[State, Cache]) -> jax.Array:
            # All devices take the same number of steps: their collectives meet.
            return (carry[0].step < until) & (sum_over_batch((~carry[0].done).sum()) > 0)

        def advance(carry: tuple[State, Cache]) -> tuple[State, Cache]:
            now, cache = carry
            slots, before = cache[0].shape[2] - now.new.shape[1], now.step - 1
            hidden, cache = decode(params, config, adapter, now.token, order.lengths, before, slots, cache)
            token = _choose(params, config, hidden[:, 0], now.step, order, method)
            return _noted(now, token, order.ends), cache

        start = dataclasses.replace(state, done=state.done | over)
        return jax.lax.while_loop(more, advance, (start, cache))

    rows, whole, states = batch_sharding(mesh), replicated(mesh), _state_places(mesh)
    places = (*model_shardings(config, params, adapter, mesh), *states, rows, _order_places(mesh), whole)
    work = per_device(go_on, mesh, places, states)
    return work(params, adapter, state, cache, over, order, until)


def _noted(state: State, token: jax.Array, ends: jax.Array) -> State:
    """The state after one more token [B] of each row."""
    new = jax.lax.dynamic_update_slice(state.new, token[:, None], (0, state.step))
    done = state.done | jnp.isin(token, ends)
    return State(state.step + 1, token, done, new, state.counts + ~done)


def _order_places(mesh: Mesh) -> Any:
    rows, whole = batch_sharding(mesh), replicated(mesh)
    return Order(rows, rows, whole, whole, Settings(*[whole] * 4))  # type: ignore[arg-type]


def _state_places(mesh: Mesh) -> Any:
    rows, cache = batch_sharding(mesh), cache_sharding(mesh)
    return State(replicated(mesh), rows, rows, rows, rows), (cache, cache)  # type: ignore[arg-type]


def _choose(
    params: Params, config: ModelConfig, hidden: jax.Array, step: jax.Array, order: Order, method: Method
) -> jax.Array:
    """The token after hidden [B, D], number `step` of its answer: int32 [B]."""
    logits = gather_vocabulary(unembed(params, config, hidden), config.vocab_size)
    logits = rule_out(logits, order.ends, step < order.least)
    return next_tokens(logits, order.settings, order.numbers, step, method)
