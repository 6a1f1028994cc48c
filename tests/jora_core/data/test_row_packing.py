"""Examples packed into one row see nothing of one another: exactly, not nearly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.batches import Batch, BatchStream, RowPlan
from jora_core.data.examples import load_groups
from jora_core.data.shared_context import Group
from jora_core.data.tokenizer import load_tokenizer
from jora_core.model.decoder import forward
from jora_core.parallel.mesh import make_mesh
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.lora import LoraSpec
from jora_core.specs.train import TrainSpec
from jora_core.training.optimizer import make_schedule
from jora_core.training.train_step import TrainStep, build_step
from jora_core.weights.load_params import load_params

ROW = 0  # the row of the batch whose examples are changed


@pytest.fixture(scope="module")
def packed(tiny_weights, alpaca_rows, write_rows, tmp_path_factory) -> tuple[TrainSpec, Batch, list[Group]]:
    """An order, a batch with several groups of shared contexts in each row, and the groups of one row."""
    folder = tmp_path_factory.mktemp("packing")
    rows = alpaca_rows(contexts=6, questions=6, lines=14) + alpaca_rows(contexts=60, questions=2, lines=2)
    spec = TrainSpec.model_validate(
        {
            "model": str(tiny_weights),
            "lora": {"r": 4, "lora_dropout": 0.0},
            "data": {
                "records": str(write_rows(folder / "r.parquet", rows)),
                "max_seq_len": 512,
                "tokens_per_batch": 2048,
            },
            "max_steps": 1,
            "output_dir": str(folder / "out"),
            "checkpoint_dir": str(folder / "checkpoints"),
        }
    )
    groups = load_groups(spec.data, load_tokenizer(tiny_weights)).train
    stream = BatchStream(groups, 2048, seed=0, blocks=2)  # two rows at least
    fullest = max(
        (plan for plan in stream.plan(0) if len(plan.rows) > 1),
        key=lambda plan: max(len(row) for row in plan.rows),
    )
    rows = sorted(fullest.rows, key=len, reverse=True)
    assert len(rows[ROW]) >= 3 and len(rows) > 1, "the test needs three groups in a row, and another row"
    assert any(len(groups[number].branches) > 1 for number in rows[ROW])
    batch = stream.build(RowPlan(fullest.length, tuple(rows)))
    return spec, batch, [groups[number] for number in rows[ROW]]


@pytest.fixture(scope="module")
def model(packed, random_adapter) -> tuple[ModelConfig, Params, Adapter, TrainStep]:
    spec, *_ = packed
    config = ModelConfig.from_hf(spec.model)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        adapter = random_adapter(config, LoraSpec(r=4, lora_dropout=0.0))
        params = load_params(spec.model, config, np.dtype("float32"), mesh)
        step = build_step(config, spec, mesh, make_schedule(spec.optim, 1), adapter)
    return config, params, adapter, step


def changed(batch: Batch, where: np.ndarray, seed: int = 0) -> Batch:
    """The batch with other tokens in some slots [T] of the row."""
    rng = np.random.default_rng(seed)
    tokens = batch.tokens.copy()
    tokens[ROW, where] = (tokens[ROW, where] + rng.integers(1, 200, where.sum())) % 256
    return dataclasses.replace(batch, tokens=tokens)


def supervised_by(batch: Batch, where: np.ndarray) -> Batch:
    """The batch with the loss of all slots switched off but of some [T] of the row."""
    mine = np.zeros(batch.tokens.shape, bool)
    mine[ROW] = where
    kept = np.take_along_axis(mine.reshape(batch.index.shape[0], -1), batch.index, axis=1)
    return dataclasses.replace(batch, weights=np.where(kept, batch.weights, 0).astype(np.float32))


def slots_of(groups: list[Group], length: int) -> list[np.ndarray]:
    """For each group of the row its slots, as bool [T]."""
    ends = np.cumsum([group.slots for group in groups])
    slot = np.arange(length)
    return [(slot >= end - group.slots) & (slot < end) for group, end in zip(groups, ends, strict=True)]


def test_hidden_states_of_other_examples_do_not_change(packed, model):
    _, batch, groups = packed
    hidden = hidden_states(batch, model)
    before = hidden(batch.tokens)
    for mine in slots_of(groups, batch.tokens.shape[1]):
        after = hidden(changed(batch, mine).tokens)
        other = batch.until > 0
        other[ROW] &= ~mine
        np.testing.assert_array_equal(after[other], before[other])
        assert np.abs(after[ROW, mine] - before[ROW, mine]).max() > 1e-3, "the change must be felt somewhere"


def test_losses_of_other_examples_do_not_change(packed, model):
    _, batch, groups = packed
    _, params, adapter, step = model
    state = step.start(jax.tree.map(np.array, adapter))

    def loss(of: Batch) -> tuple[float, float]:
        total, weight = step.evaluate(state, params, step.place(of))
        return float(total), float(weight)

    places = slots_of(groups, batch.tokens.shape[1])
    before = [loss(supervised_by(batch, where)) for where in places]
    assert all(weight > 0 for _, weight in before)
    for altered, where in enumerate(places):
        after = [loss(supervised_by(changed(batch, where), mine)) for mine in places]
        assert [n for n, (a, b) in enumerate(zip(after, before, strict=True)) if a != b] == [altered]


def test_branches_of_one_context_do_not_see_one_another(packed, model):
    """The same exactness inside a group: another question of the same context changes nothing."""
    _, batch, groups = packed
    number = next(n for n, group in enumerate(groups) if len(group.branches) > 1)
    before_it = sum(group.slots for group in groups[:number])
    sizes = [len(piece) - 1 for _, piece in groups[number].branches]
    slot = np.arange(batch.tokens.shape[1]) - before_it
    second = (slot >= sizes[0]) & (slot < sizes[0] + sizes[1])
    hidden = hidden_states(batch, model)
    before, after = (hidden(b.tokens)[ROW] for b in (batch, changed(batch, second)))
    others = (batch.until[ROW] > 0) & ~second
    np.testing.assert_array_equal(after[others], before[others])
    assert np.abs(after[second] - before[second]).max() > 1e-3


def hidden_states(batch: Batch, model: Any) -> Callable[[np.ndarray], np.ndarray]:
    config, params, adapter, _ = model

    @jax.jit
    def hidden(tokens: jax.Array) -> jax.Array:
        places = (batch.positions, batch.until)
        return forward(params, config, tokens, *places, adapter=adapter, dropout_key=None)

    return lambda tokens: np.asarray(hidden(tokens))
