"""Log-likelihoods of a record's choices under the model, computed in one pass over the prompt.

Every choice is an example. Examples share prefixes (see `jora_core.data.shared_context`): the choices of a
record share its prompt, and the records of a context share the context. A score is the summed log-likelihood
of the choice's tokens and of the end-of-sequence token. Without the latter, "1" would always score higher
than "12", which begins with "1".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.progress import progress
from jora_core.data.batches import Batch, BatchStream, RowPlan
from jora_core.data.shared_context import Example, Group, share_contexts
from jora_core.model.answer_loss import pick_positions, target_logprobs
from jora_core.model.blockwise_attention import fitting_block
from jora_core.model.decoder import forward
from jora_core.parallel.collectives import per_device
from jora_core.parallel.mesh import current_mesh
from jora_core.parallel.placements import batch_sharding, model_shardings
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.common import AttentionChoice

# Batches that are computed at once, each by a thread. A CPU runs their programs side by side, which uses its
# cores better than one program of small operations does. Any device goes on while the host adds up results.
_BATCHES_AT_ONCE = 2
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Question:
    """One record to answer: the prompt int32 [T] with BOS, and the tokens of each choice with EOS."""

    id: str
    prompt: np.ndarray
    choices: tuple[str, ...]
    choice_tokens: tuple[np.ndarray, ...]
    context: str = ""


class GroupedChoices(NamedTuple):
    """Groups of the choices of questions, and the numbers of question and choice of each example."""

    owners: list[tuple[int, int]]
    groups: list[Group]


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
    grouped: GroupedChoices | None = None,
) -> list[np.ndarray]:
    """Compute the log-likelihood of every choice of every question, end-of-sequence token included.

    Args:
        params: weights, placed on the current mesh.
        config: the model's.
        questions: the questions with their choices.
        tokens_per_batch: token slots of a batch.
        blocks: size of the mesh's data axis.
        adapter: low-rank updates, None for the base model.
        attention: kernel choice, see `jora_core.model.cudnn_attention`.
        label: title of the progress bar.
        share: whether questions of one context share one pass over it.
        grouped: `group_choices` of the same questions, for a caller that scores them with several models.

    Returns:
        float64 [choices] for each question.
    """
    scores = [np.zeros(len(question.choices)) for question in questions]
    owners, groups = grouped or group_choices(questions, tokens_per_batch, share)
    if not groups:
        return scores
    stream = BatchStream(groups, tokens_per_batch, seed=0, blocks=blocks, shuffle=False)
    plans = stream.plan(0)
    heights = _heights(plans) if blocks == 1 else {}
    mesh = current_mesh()
    block = fitting_block(stream.sample_of_until())
    precision = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009 - unknown to pyright

    def compute(plan: RowPlan) -> tuple[RowPlan, Batch, np.ndarray]:
        batch = stream.build(plan)
        arrays = _device_arrays(batch, heights.get(plan.length))
        # JAX's settings belong to a thread.
        with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
            found = _token_logprobs(
                params, adapter, arrays, config, mesh, attention=attention, attention_block=block
            )
            # In float64: with float32 sums, two close choices could change places with the batch.
            return plan, batch, np.asarray(found, np.float64)

    # Two programs with collectives could wait for each other's devices.
    at_once = _BATCHES_AT_ONCE if mesh.size == 1 else 1
    with progress(label, len(plans)) as bar, ThreadPoolExecutor(at_once) as pool:
        for future in _delayed(_started(pool, compute, plans), at_once):
            plan, batch, found = future.result()
            sums = _per_branch(batch, plan, groups, found)
            for id, value in zip(batch.ids, sums, strict=True):
                question, choice = owners[int(id)]
                scores[question][choice] = value
            bar.advance()
    return scores


def _started(
    pool: ThreadPoolExecutor, compute: Callable[[RowPlan], _Result], plans: Iterable[RowPlan]
) -> Iterator[Future[_Result]]:
    """Start the computation of each plan in the pool, but the first of each row length here."""
    compiled: set[int] = set()
    for plan in plans:
        if plan.length in compiled:
            yield pool.submit(compute, plan)
        else:
            # It compiles the program of this length, which two threads would do twice.
            compiled.add(plan.length)
            first: Future[_Result] = Future()
            first.set_result(compute(plan))
            yield first


def _delayed(items: Iterator[_Item], count: int) -> Iterator[_Item]:
    """Yield each item when `count` later ones have been taken from the iterator, or none is left."""
    kept: deque[_Item] = deque()
    for item in items:
        kept.append(item)
        if len(kept) > count:
            yield kept.popleft()
    yield from kept


def group_choices(questions: Sequence[Question], most_slots: int, share: bool = True) -> GroupedChoices:
    """Make an example of each choice and group the examples. An example's id is its number.

    Args:
        questions: the questions with their choices.
        most_slots: largest group, in token slots.
        share: whether questions of one context share one pass over it.
    """
    owners: list[tuple[int, int]] = []
    examples: list[Example] = []
    for number, question in enumerate(questions):
        # The choices of a question always share the question's prompt. A unique context name keeps other
        # questions out of the group.
        context = question.context if share and question.context else f"alone {number}"
        for choice, tokens in enumerate(question.choice_tokens):
            # Grouping changes the order, so the id is the place in `owners`.
            examples.append(Example(str(len(owners)), context, question.prompt, tokens))
            owners.append((number, choice))
    return GroupedChoices(owners, share_contexts(examples, most_slots))


def _heights(plans: Sequence[RowPlan]) -> dict[int, int]:
    """Return the most rows in use of the batches of each row length.

    A stream pads every batch to its token budget, so that training has few programs. Here all batches are
    known: a few questions of one thread, which fill one row, must not pay for three empty ones.
    """
    found: dict[int, int] = {}
    for plan in plans:
        found[plan.length] = max(found.get(plan.length, 0), len(plan.rows))
    return found


def _device_arrays(batch: Batch, height: int | None) -> dict[str, np.ndarray]:
    """Return the arrays of a batch, without the rows after the first `height`; None keeps all rows."""
    # Rows in use come first, and `index` counts slots row by row, so empty rows at the end may be cut off.
    rows = {name: getattr(batch, name)[:height] for name in ("tokens", "positions", "until")}
    return {**rows, "index": batch.index, "targets": batch.targets}


# At module level, so that jit keeps the programs over all calls. Weights are arguments: captured by a
# closure, they would be constants inside of the program.
@partial(jax.jit, static_argnames=("config", "mesh", "attention", "attention_block"))
def _token_logprobs(
    params: Params,
    adapter: Adapter | None,
    batch: dict[str, jax.Array],
    config: ModelConfig,
    mesh: Mesh,
    *,
    attention: AttentionChoice,
    attention_block: int | None,
) -> jax.Array:
    """Compute the log-probability of each gathered position's target, float32 [G, M]."""

    def logprobs(params: Params, adapter: Adapter | None, batch: dict[str, jax.Array]) -> jax.Array:
        places = (batch["tokens"], batch["positions"], batch["until"])
        hidden = forward(
            params,
            config,
            *places,
            adapter=adapter,
            attention=attention,
            attention_block=attention_block,
        )
        picked = pick_positions(hidden, batch["index"], batch["tokens"].shape[1])
        return target_logprobs(params, config, picked, batch["targets"])

    rows = batch_sharding(mesh)
    places = (*model_shardings(config, params, adapter, mesh), dict.fromkeys(batch, rows))
    return per_device(logprobs, mesh, places, rows)(params, adapter, batch)


def _per_branch(batch: Batch, plan: RowPlan, groups: Sequence[Group], values: np.ndarray) -> np.ndarray:
    """Sum token values [G, M] over each branch of the batch's groups; float64 [branches], in group order."""
    # Branches are laid out one after another, so the first slot of each tells the branch of any slot.
    blocks, _ = batch.index.shape
    height, length = batch.tokens.shape
    starts: list[np.ndarray] = []
    for number, row in enumerate(plan.rows):
        sizes = [len(branch.piece) - 1 for group in row for branch in groups[group].branches]
        starts.append(number * length + np.cumsum([0, *sizes[:-1]]))
    # `index` counts slots within a block of rows; the sum counts them within the batch.
    slots = batch.index + np.arange(blocks)[:, None] * (height // blocks) * length
    first = np.concatenate(starts)
    branch = np.searchsorted(first, slots, side="right") - 1
    # Padded positions count for some branch, but with 0.
    return np.bincount(branch.ravel(), weights=(values * (batch.weights > 0)).ravel(), minlength=len(first))
