"""Generation: a prefill of the prompts fills a key/value cache, then tokens are decoded in chunks.

Prompts are padded to a few lengths, so that few programs are compiled: for each length one for the prefill,
and one that decodes any number of tokens. Between two chunks the host gets the new tokens. The host can then
end an answer at a stop string, or show an unfinished answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.row_packing import choose_row_lengths, rows_of
from jora_core.data.shared_context import token_order
from jora_core.generation.kv_cache import KVCache, NewToken, decode, prefill
from jora_core.generation.prompt_rows import PromptRows, lay_out_prompts
from jora_core.generation.sampling import (
    SamplingMethod,
    SamplingSettings,
    exclude_tokens,
    next_tokens,
    sampling_method,
    sampling_settings,
)
from jora_core.model.decoder import pick_positions, unembed
from jora_core.parallel.collectives import gather_vocabulary, per_device, sum_over_batch
from jora_core.parallel.mesh import current_mesh, data_shards
from jora_core.parallel.placements import batch_sharding, cache_sharding, model_shardings, replicated
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.answers import SamplingSpec
from jora_core.specs.common import AttentionChoice

GREEDY = SamplingSpec()  # type: ignore[call-arg]
# Tokens between two calls of `watch`.
CHUNK = 16
# Slots for new tokens are a multiple of this number, so that similar `max_new_tokens` share a program.
NEW_TOKENS_STEP = 32


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of the generation of answers.

    Attributes:
        eos_ids: end tokens. Each of them ends an answer and is not part of the answer.
        max_new_tokens: longest answer in tokens.
        min_new_tokens: shortest answer in tokens; no end token is chosen before.
        sampling: settings of the choice of each token.
        tokens_per_batch: slots of one batch for prompts and answers, padding included.
        chunk: number of tokens between two calls of `watch`.
        attention: kernel choice for the prefill, see `jora_core.model.cudnn_attention`.
    """

    eos_ids: Sequence[int]
    max_new_tokens: int
    min_new_tokens: int = 0
    sampling: SamplingSpec = GREEDY
    tokens_per_batch: int = 8192
    chunk: int = CHUNK
    attention: AttentionChoice = "auto"

    @property
    def new_slots(self) -> int:
        """Number of key/value cache slots for the new tokens of an answer."""
        return -(-self.max_new_tokens // NEW_TOKENS_STEP) * NEW_TOKENS_STEP


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[np.ndarray],
    settings: GenerationSettings,
    *,
    adapter: Adapter | None = None,
    numbers: Sequence[int] | None = None,
    contexts: Sequence[str] | None = None,
    watch: Callable[[int, np.ndarray], bool] | None = None,
    on_answers: Callable[[Sequence[int], Sequence[np.ndarray]], None] | None = None,
) -> list[np.ndarray]:
    """Continue each prompt until an end token, `max_new_tokens`, or until `watch` ends its answer.

    Args:
        params: weights, placed on the current mesh.
        config: the model's.
        prompts: int32 [T] each, at least one token, special tokens included.
        settings: limits of the answers, and settings of the choice of tokens.
        adapter: low-rank updates, None for the base model.
        numbers: seed number below 2³² for each prompt's random draws; the prompt's index if None.
        contexts: the context of each prompt, None or "" for none. Prompts of one context that come into the
            same batch share the prefill of their common prefix.
        watch: called every `chunk` tokens with a prompt's index and new tokens; True ends the answer. A batch
            runs until its last answer has ended.
        on_answers: called after each batch with the indices of its prompts and their answers.

    Returns:
        The answer to each prompt, int32 [tokens], in the order of the prompts.
    """
    answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    if not prompts:
        return answers
    generator = _Generator(
        Model(params, adapter),
        DecodeProgram(
            config, sampling_method(settings.sampling), current_mesh(), settings.new_slots, settings.attention
        ),
        settings,
    )
    # `jax.random.fold_in` takes 32 bits.
    draw_numbers = np.asarray(range(len(prompts)) if numbers is None else numbers, np.uint32)
    all_contexts = contexts or [""] * len(prompts)
    for batch in _batches(prompts, all_contexts, draw_numbers, settings):
        # The default binds the places of this batch; a free variable would be read at the call.
        def watch_row(row: int, tokens: np.ndarray, places: np.ndarray = batch.places) -> bool:
            return watch is not None and watch(int(places[row]), tokens)

        # Without `watch`, one chunk is the whole answer, and no token waits for the host.
        chunk = settings.max_new_tokens if watch is None else settings.chunk
        # Not strict: a batch may end with padding prompts, whose answers are dropped.
        for place, answer in zip(batch.places, generator.answers(batch, watch_row, chunk), strict=False):
            answers[place] = answer
        if on_answers is not None:
            places = batch.places.tolist()
            on_answers(places, [answers[place] for place in places])
    return answers


@dataclass(frozen=True)
class _PromptBatch:
    """Prompts that are answered together, padded with prompts of length 0.

    Attributes:
        places: [at most B], index of each prompt in the whole list of prompts.
        rows: the prompts in their slots.
        lengths: int32 [B], tokens of each prompt.
        numbers: uint32 [B], seed number of each prompt's random draws.
    """

    places: np.ndarray
    rows: PromptRows
    lengths: np.ndarray
    numbers: np.ndarray


def _batches(
    prompts: Sequence[np.ndarray],
    contexts: Sequence[str],
    numbers: np.ndarray,
    settings: GenerationSettings,
) -> Iterator[_PromptBatch]:
    """Divide the prompts into batches, sorted by context and length."""
    budget = settings.tokens_per_batch
    sizes = np.asarray([len(prompt) for prompt in prompts])
    # Sorted by context, and within a context so that the longest common prefixes are adjacent.
    keys = [
        (context, token_order(prompt) if context else b"")
        for context, prompt in zip(contexts, prompts, strict=True)
    ]
    by_context = np.asarray(sorted(range(len(prompts)), key=keys.__getitem__))
    shards = data_shards()
    shorter = 0
    for length in choose_row_lengths(sizes, budget):
        of_length = by_context[(sizes[by_context] > shorter) & (sizes[by_context] <= length)]
        shorter = length
        # The budget is for the slots of the cache: those of the prompt and those of the answer.
        fitting = rows_of(length + settings.new_slots, budget)
        # All batches of a length have the same number of rows and share a program: the last one is padded.
        height = -(-min(fitting, max(len(of_length), 1)) // shards) * shards
        for start in range(0, len(of_length), height):
            places = of_length[start : start + height]
            count = len(places)
            lengths, batch_numbers = np.zeros(height, np.int32), np.zeros(height, np.uint32)
            lengths[:count], batch_numbers[:count] = sizes[places], numbers[places]
            rows = lay_out_prompts(
                [prompts[int(n)] for n in places], [contexts[int(n)] for n in places], length, height, shards
            )
            yield _PromptBatch(places, rows, lengths, batch_numbers)


class Model(NamedTuple):
    """The weights of a model, and an adapter or None."""

    params: Params
    adapter: Adapter | None


@dataclass(frozen=True)
class DecodeProgram:
    """Static settings of a batch's compiled programs, beside the shapes of their arguments."""

    config: ModelConfig
    method: SamplingMethod
    mesh: Mesh
    new_slots: int
    attention: AttentionChoice = "auto"


@flax.struct.dataclass
class DecodeState:
    """State of a batch after `step` generated tokens.

    Finished rows are still computed, since all rows of a batch share a program. Their tokens are ignored.

    Attributes:
        step: int32 scalar, number of tokens generated so far.
        last_token: int32 [B], the newest token.
        finished: bool [B], whether the answer has ended.
        tokens: int32 [B, new slots], all generated tokens.
        counts: int32 [B], number of generated tokens that belong to the answer.
    """

    step: jax.Array
    last_token: jax.Array
    finished: jax.Array
    tokens: jax.Array
    counts: jax.Array


@flax.struct.dataclass
class DecodeInputs:
    """Inputs that stay constant while a batch is decoded.

    All are arrays, so that other values need no new program.

    Attributes:
        prompt_lengths: int32 [B], tokens of each prompt.
        numbers: uint32 [B], seed number of each row's random draws.
        eos_ids: int32 [E], the end tokens.
        min_new_tokens: int32 scalar, shortest answer.
        sampling: settings of the choice of tokens, as scalars.
    """

    prompt_lengths: jax.Array
    numbers: jax.Array
    eos_ids: jax.Array
    min_new_tokens: jax.Array
    sampling: SamplingSettings


class ChunkEnd(NamedTuple):
    """End of a chunk of tokens.

    Attributes:
        step: int32 scalar, number of generated tokens after the chunk.
        stopped: bool [B], rows whose answers the host has ended.
    """

    step: jax.Array | int
    stopped: jax.Array | np.ndarray


def decode_inputs(settings: GenerationSettings, lengths: np.ndarray, numbers: np.ndarray) -> DecodeInputs:
    """Return the constant inputs of a batch.

    Args:
        settings: settings of all batches.
        lengths: int32 [B], tokens of each prompt.
        numbers: uint32 [B], seed number of each row's random draws.
    """
    return DecodeInputs(
        jnp.asarray(lengths),
        jnp.asarray(numbers),
        jnp.asarray(sorted(set(settings.eos_ids)), jnp.int32),
        jnp.int32(settings.min_new_tokens),
        sampling_settings(settings.sampling),
    )


@dataclass(frozen=True)
class _Generator:
    """Generator of answers, one batch of prompts at a time."""

    model: Model
    program: DecodeProgram
    settings: GenerationSettings

    def answers(
        self, batch: _PromptBatch, watch: Callable[[int, np.ndarray], bool], chunk: int
    ) -> list[np.ndarray]:
        """Answer the prompts of one batch, padding prompts included.

        Args:
            batch: B prompts.
            watch: called after each chunk with a row's number and new tokens; True ends the row's answer.
            chunk: number of tokens between two calls of `watch`.
        """
        inputs = decode_inputs(self.settings, batch.lengths, batch.numbers)
        state, cache = prefill_prompts(self.model, batch.rows, inputs, self.program)
        seen = np.zeros(len(batch.lengths), np.int32)
        stopped = np.zeros(len(batch.lengths), bool)
        # The prefill has chosen the first token.
        step, last_step = 1, self.settings.max_new_tokens
        while True:
            tokens, counts, finished = jax.device_get((state.tokens, state.counts, state.finished))
            for row in np.flatnonzero(~stopped & (counts > seen)):
                fresh, seen[row] = tokens[row, seen[row] : counts[row]], counts[row]
                stopped[row] = watch(int(row), fresh)
            if step == last_step or (finished | stopped).all():
                return [answer[:count] for answer, count in zip(tokens, counts, strict=True)]
            step = min(step + chunk, last_step)
            state, cache = decode_chunk(
                self.model, state, cache, inputs, ChunkEnd(step, stopped), self.program
            )


@partial(jax.jit, static_argnames=("program",))
def prefill_prompts(
    model: Model, prompts: PromptRows, inputs: DecodeInputs, program: DecodeProgram
) -> tuple[DecodeState, KVCache]:
    """Run the prompts of a batch through the model and choose the first token of each answer.

    Args:
        model: weights and adapter.
        prompts: rows of B prompts.
        inputs: constant inputs of the batch.
        program: static settings of the compiled program.
    """
    config = program.config

    def run(model: Model, prompts: PromptRows, inputs: DecodeInputs) -> tuple[DecodeState, KVCache]:
        params, adapter = model
        lengths, slots = inputs.prompt_lengths, prompts.tokens.shape[1]
        capacity = slots + program.new_slots
        hidden, cache = prefill(params, config, adapter, prompts, capacity, program.attention)
        # A padding prompt has no last token. It takes slot 0 and counts as finished from the start.
        last_slot = jnp.take_along_axis(prompts.path, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        last_hidden = pick_positions(hidden, last_slot[None], slots)[0]
        step = jnp.zeros((), jnp.int32)
        token = _choose_token(params, last_hidden, step, inputs, program)
        # The sum with lengths makes the zeros vary over the data axis. `jax.shard_map` requires this of a
        # result that is split over the data axis.
        tokens = jnp.zeros((len(lengths), program.new_slots), jnp.int32) + 0 * lengths[:, None]
        empty = DecodeState(step, token, lengths == 0, tokens, jnp.zeros_like(lengths))
        return _append(empty, token, inputs.eos_ids), cache

    mesh = program.mesh
    rows = batch_sharding(mesh)
    row_places = PromptRows(rows, rows, rows, rows)  # type: ignore[arg-type]
    places = (_model_places(model, program), row_places, _input_places(mesh))
    return per_device(run, mesh, places, _state_places(mesh))(model, prompts, inputs)


# Without donation each chunk would hold two caches, the largest arrays beside the weights.
@partial(jax.jit, static_argnames=("program",), donate_argnames="cache")
def decode_chunk(
    model: Model,
    state: DecodeState,
    cache: KVCache,
    inputs: DecodeInputs,
    end: ChunkEnd,
    program: DecodeProgram,
) -> tuple[DecodeState, KVCache]:
    """Decode tokens until the end of a chunk, or until all rows are finished.

    Args:
        model: weights and adapter.
        state: state of the batch after the previous chunk.
        cache: keys and values of all earlier tokens. The cache is donated and written in place.
        inputs: constant inputs of the batch.
        end: end of the chunk.
        program: static settings of the compiled program.
    """

    def run(
        model: Model, state: DecodeState, cache: KVCache, inputs: DecodeInputs, end: ChunkEnd
    ) -> tuple[DecodeState, KVCache]:
        params, adapter = model

        def unfinished(carry: tuple[DecodeState, KVCache]) -> jax.Array:
            # The sum makes all devices take the same number of steps: a device that left the loop alone would
            # be missing in the collectives of the others.
            return (carry[0].step < end.step) & (sum_over_batch((~carry[0].finished).sum()) > 0)

        def one_step(carry: tuple[DecodeState, KVCache]) -> tuple[DecodeState, KVCache]:
            now, cache = carry
            prompt_slots = cache[0].shape[2] - now.tokens.shape[1]
            # The newest token, number step - 1, is not in the cache yet, so it is the input of this step.
            new = NewToken(now.last_token, inputs.prompt_lengths, now.step - 1, prompt_slots)
            hidden, cache = decode(params, program.config, adapter, new, cache)
            token = _choose_token(params, hidden[:, 0], now.step, inputs, program)
            return _append(now, token, inputs.eos_ids), cache

        # Answers that the host has ended do not keep the loop running.
        start = dataclasses.replace(state, finished=state.finished | end.stopped)
        return jax.lax.while_loop(unfinished, one_step, (start, cache))

    mesh = program.mesh
    rows, whole, states = batch_sharding(mesh), replicated(mesh), _state_places(mesh)
    end_places = ChunkEnd(whole, rows)  # type: ignore[arg-type]
    places = (_model_places(model, program), *states, _input_places(mesh), end_places)
    return per_device(run, mesh, places, states)(model, state, cache, inputs, end)


def _append(state: DecodeState, token: jax.Array, eos_ids: jax.Array) -> DecodeState:
    """Return the state after one more token [B] of each row."""
    tokens = jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step))
    finished = state.finished | jnp.isin(token, eos_ids)
    return DecodeState(state.step + 1, token, finished, tokens, state.counts + ~finished)


def _choose_token(
    params: Params, hidden: jax.Array, step: jax.Array, inputs: DecodeInputs, program: DecodeProgram
) -> jax.Array:
    """Choose the token int32 [B] after hidden states [B, D]. `step` is the token's number in the answer."""
    config = program.config
    # A maximum, a draw and a sort all need the whole vocabulary on one device.
    logits = gather_vocabulary(unembed(params, config, hidden), config.vocab_size)
    logits = exclude_tokens(logits, inputs.eos_ids, step < inputs.min_new_tokens)
    return next_tokens(logits, inputs.sampling, inputs.numbers, step, program.method)


def _model_places(model: Model, program: DecodeProgram) -> Any:
    return Model(*model_shardings(program.config, model.params, model.adapter, program.mesh))


def _input_places(mesh: Mesh) -> Any:
    rows, whole = batch_sharding(mesh), replicated(mesh)
    return DecodeInputs(rows, rows, whole, whole, SamplingSettings(*[whole] * 4))  # type: ignore[arg-type]


def _state_places(mesh: Mesh) -> Any:
    rows, cache = batch_sharding(mesh), cache_sharding(mesh)
    return DecodeState(replicated(mesh), rows, rows, rows, rows), (cache, cache)  # type: ignore[arg-type]
