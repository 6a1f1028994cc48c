"""Which of a record's choices does the model find likeliest: all of them scored in one pass over the prompt.

The choices of a record are suffixes of one prompt (see `jora_core.blockwise`), so the prompt is computed
once; and records of one context are suffixes of it, each question again for each of its choices, where that
takes fewer slots. A score is the summed log-likelihood of the choice's tokens and the end of sequence, so
"1" is not preferred to "12" for being its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from jora_core.batches import Batch, BatchStream
from jora_core.config import ModelConfig
from jora_core.groups import Group, Piece, common_prefix, token_order
from jora_core.lora import Adapter
from jora_core.loss import pick_positions, target_logprobs
from jora_core.model import Params, forward
from jora_core.progress import Progress
from jora_core.sharding import batch_sharding, current_mesh, model_shardings, per_device
from jora_core.spec import AttentionChoice


@dataclass(frozen=True)
class Question:
    """One record to answer: prompt int32 [T] with BOS, and each choice's tokens with EOS."""

    id: str
    prompt: np.ndarray
    choices: tuple[str, ...]
    choice_tokens: tuple[np.ndarray, ...]
    context: str = ""


def score_choices(
    params: Params,
    config: ModelConfig,
    questions: Sequence[Question],
    *,
    tokens_per_batch: int,
    blocks: int = 1,
    adapter: Adapter | None = None,
    attention: AttentionChoice = "auto",
    label: str = "choose",
    share: bool = True,
) -> list[np.ndarray]:
    """Log-likelihood of every choice of every question, end of sequence included: float64 [choices] each.

    Args:
        share: let questions of one context share one pass over it.
    """
    groups, owners = _choice_groups(questions, tokens_per_batch, share)
    scores = [np.zeros(len(question.choices)) for question in questions]
    if not groups:
        return scores
    stream = BatchStream(groups, tokens_per_batch, seed=0, blocks=blocks, shuffle=False)
    plans = stream.plan(0)
    mesh = current_mesh()
    progress = Progress(label, len(plans))
    for number, plan in enumerate(plans):
        batch = stream.build(plan)
        found = _token_logprobs(params, adapter, _device_arrays(batch), config, mesh, attention)
        values = np.asarray(found, np.float64)
        for group, suffix, value in _per_choice(batch, values):
            question, choice = owners[group][suffix - 1]
            scores[question][choice] += value
        progress.update(number + 1)
    return scores


_Owners = list[tuple[int, int]]  # of each suffix of a group: number of its question, number of its choice


def _choice_groups(
    questions: Sequence[Question], most_slots: int, share: bool
) -> tuple[list[Group], list[_Owners]]:
    """Groups of at most `most_slots` slots where that is possible, and whose suffixes they hold. A group's id
    is its number.
    """
    groups: list[Group] = []
    owners: list[_Owners] = []
    for run, shared in _runs(questions) if share else [([n], _alone(q)) for n, q in enumerate(questions)]:
        prefix = Piece(questions[run[0]].prompt[:shared], np.zeros(shared, np.float32))
        suffixes: list[Piece] = []
        whose: _Owners = []
        used = shared
        for number in run:
            rest = questions[number].prompt[shared:]
            for choice, tokens in enumerate(questions[number].choice_tokens):
                weights = np.concatenate([np.zeros(len(rest), np.float32), np.ones(len(tokens), np.float32)])
                suffix = Piece(np.concatenate([rest, tokens]), weights)
                if suffixes and used + len(suffix) - 1 > most_slots:
                    groups.append(Group((str(len(groups)),), prefix, tuple(suffixes)))
                    owners.append(whose)
                    suffixes, whose, used = [], [], shared
                suffixes.append(suffix)
                whose.append((number, choice))
                used += len(suffix) - 1
        if suffixes:
            groups.append(Group((str(len(groups)),), prefix, tuple(suffixes)))
            owners.append(whose)
    return groups, owners


def _alone(question: Question) -> int:
    """Tokens of a prompt that its choices share: all but the last, for each choice needs a slot of its own to
    predict its first token.
    """
    return len(question.prompt) - 1


def _runs(questions: Sequence[Question]) -> list[tuple[list[int], int]]:
    """Questions that share a context, and how many tokens of it; in runs extended while that saves slots."""

    def slots(run: list[int], shared: int) -> int:
        members = [questions[number] for number in run]
        return shared + sum(
            len(q.prompt) - shared + len(tokens) - 1 for q in members for tokens in q.choice_tokens
        )

    contexts: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        if question.choices:
            contexts.setdefault(question.context or f"alone {number}", []).append(number)
    runs: list[tuple[list[int], int]] = []
    for numbers in contexts.values():
        first = len(runs)
        for number in sorted(numbers, key=lambda n: (token_order(questions[n].prompt), n)):
            question = questions[number]
            if len(runs) > first:
                run, shared = runs[-1]
                common = common_prefix(questions[run[0]].prompt[:shared], question.prompt)
                common = min(common, _alone(question))
                apart = slots(run, shared) + slots([number], _alone(question))
                if slots([*run, number], common) < apart:
                    runs[-1] = ([*run, number], common)
                    continue
            runs.append(([number], _alone(question)))
    return runs


def _device_arrays(batch: Batch) -> dict[str, np.ndarray]:
    names = ("tokens", "positions", "segment_ids", "suffix_ids", "index", "targets")
    return {name: getattr(batch, name) for name in names}


@partial(jax.jit, static_argnames=("config", "mesh", "attention"))
def _token_logprobs(
    params: Params,
    adapter: Adapter | None,
    batch: dict[str, jax.Array],
    config: ModelConfig,
    mesh: Mesh,
    attention: AttentionChoice,
) -> jax.Array:
    """Log-probability of each gathered position's target: float32 [G, M]."""

    def logprobs(params: Params, adapter: Adapter | None, batch: dict[str, jax.Array]) -> jax.Array:
        places = (batch["tokens"], batch["positions"], batch["segment_ids"], batch["suffix_ids"])
        hidden = forward(params, config, *places, adapter=adapter, attention=attention)
        picked = pick_positions(hidden, batch["index"], batch["tokens"].shape[1])
        return target_logprobs(params, config, picked, batch["targets"])

    rows = batch_sharding(mesh)
    places = (*model_shardings(config, params, adapter, mesh), dict.fromkeys(batch, rows))
    return per_device(logprobs, mesh, places, rows)(params, adapter, batch)


def _per_choice(batch: Batch, values: np.ndarray) -> list[tuple[int, int, float]]:
    """Sums of token values per (group number, suffix number) of a batch."""
    blocks, _ = batch.index.shape
    height, length = batch.tokens.shape
    segments_before = np.concatenate([[0], np.cumsum(batch.segment_ids.max(axis=1))[:-1]])
    flat = batch.index + np.arange(blocks)[:, None] * (height // blocks) * length
    real = batch.weights > 0
    row, column = np.divmod(flat[real], length)
    order = segments_before[row] + batch.segment_ids[row, column] - 1
    suffix = batch.suffix_ids[row, column]
    most = int(suffix.max()) + 1
    sums = np.bincount(order * most + suffix, weights=values[real], minlength=len(batch.ids) * most)
    found = np.unique(order * most + suffix)
    return [(int(batch.ids[key // most]), int(key % most), float(sums[key])) for key in found.tolist()]
