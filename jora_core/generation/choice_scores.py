"""Log-likelihoods of a record's choices under the model, computed in one pass over the prompt.

Every choice is an example. Examples share prefixes (see `jora_core.generation.choice_trees`): the choices of
a record share its prompt and how they begin, and the records of a context share the context. A score is the
summed log-likelihood of the choice's tokens and of the end-of-sequence token. Without the latter, "1" would
always score higher than "12", which begins with "1".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.progress import progress
from jora_core.data.batches import Batch, RowPlan
from jora_core.generation.choice_trees import ChoicePlan, Edges
from jora_core.model.answer_loss import target_logprobs
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


def score_choices(
    params: Params,
    config: ModelConfig,
    plan: ChoicePlan,
    *,
    adapter: Adapter | None = None,
    attention: AttentionChoice = "auto",
    label: str = "choose",
) -> list[np.ndarray]:
    """Compute the log-likelihood of every choice of every question, end-of-sequence token included.

    Args:
        params: weights, placed on the current mesh.
        config: the model's.
        plan: `plan_choices` of the questions.
        adapter: low-rank updates, None for the base model.
        attention: kernel choice, see `jora_core.model.cudnn_attention`.
        label: title of the progress bar.

    Returns:
        float64 [choices] for each question.
    """
    mesh = current_mesh()
    precision = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009 - unknown to pyright

    def compute(batch: tuple[RowPlan, Edges]) -> tuple[Edges, np.ndarray]:
        rows, edges = batch
        arrays = _device_arrays(plan.stream.build(rows), edges, plan.heights.get(rows.length))
        # JAX's settings belong to a thread.
        with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
            found = _token_logprobs(
                params,
                adapter,
                arrays,
                config,
                mesh,
                attention=attention,
                attention_block=plan.attention_block,
            )
            return edges, np.asarray(found)

    # In float64: with float32 sums, two close choices could change places with the batch.
    scores = np.zeros(sum(plan.sizes))
    # Two programs with collectives could wait for each other's devices.
    at_once = _BATCHES_AT_ONCE if mesh.size == 1 else 1
    with progress(label, len(plan.batches)) as bar, ThreadPoolExecutor(at_once) as pool:
        for future in _delayed(_started(pool, compute, plan.batches), at_once):
            edges, found = future.result()
            np.add.at(scores, edges.examples, found.ravel()[edges.places])
            bar.advance()
    return np.split(scores, np.cumsum(plan.sizes)[:-1])


def _started(
    pool: ThreadPoolExecutor,
    compute: Callable[[tuple[RowPlan, Edges]], _Result],
    batches: Iterable[tuple[RowPlan, Edges]],
) -> Iterator[Future[_Result]]:
    """Start the computation of each batch in the pool, but the first of each row length here."""
    compiled: set[int] = set()
    for batch in batches:
        length = batch[0].length
        if length in compiled:
            yield pool.submit(compute, batch)
        else:
            # It compiles the program of this length, which two threads would do twice.
            compiled.add(length)
            first: Future[_Result] = Future()
            first.set_result(compute(batch))
            yield first


def _delayed(items: Iterator[_Item], count: int) -> Iterator[_Item]:
    """Yield each item when `count` later ones have been taken from the iterator, or none is left."""
    kept: deque[_Item] = deque()
    for item in items:
        kept.append(item)
        if len(kept) > count:
            yield kept.popleft()
    yield from kept


def _device_arrays(batch: Batch, edges: Edges, height: int | None) -> dict[str, np.ndarray]:
    """Return the arrays of a batch, without the rows after the first `height`; None keeps all rows."""
    # Rows in use come first, and `index` counts slots row by row, so empty rows at the end may be cut off.
    rows = {name: getattr(batch, name)[:height] for name in ("tokens", "positions", "until")}
    return {**rows, "index": edges.index, "at": edges.at, "targets": edges.targets}


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
    """Compute the log-probability of each edge's token, float32 [G, M]."""

    def logprobs(params: Params, adapter: Adapter | None, batch: dict[str, jax.Array]) -> jax.Array:
        places = (batch["tokens"], batch["positions"], batch["until"])
        picked = forward(
            params,
            config,
            *places,
            adapter=adapter,
            attention=attention,
            attention_block=attention_block,
            index=batch["index"],
        )
        return target_logprobs(params, config, picked, batch["at"], batch["targets"])

    rows = batch_sharding(mesh)
    places = (*model_shardings(config, params, adapter, mesh), dict.fromkeys(batch, rows))
    return per_device(logprobs, mesh, places, rows)(params, adapter, batch)
