"""Examples packed into one row see nothing of one another: exactly, not nearly."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jora_core.batches import Batch, BatchStream, RowPlan
from jora_core.config import ModelConfig
from jora_core.data import load_groups
from jora_core.loading import load_params
from jora_core.lora import Adapter
from jora_core.model import Params, forward
from jora_core.optim import make_schedule
from jora_core.sharding import make_mesh
from jora_core.spec import LoraSpec, TrainSpec
from jora_core.step import TrainStep, build_step
from jora_core.tokenize import load_tokenizer

ROW = 0  # the row of the batch whose examples are changed


@pytest.fixture(scope="module")
def packed(tiny_weights, alpaca_rows, write_rows, tmp_path_factory) -> tuple[TrainSpec, Batch]:
    """An order and a batch with several groups of shared contexts in each row."""
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
    assert any(len(groups[number].suffixes) > 1 for number in rows[ROW])
    return spec, stream.build(RowPlan(fullest.length, tuple(rows)))


@pytest.fixture(scope="module")
def model(packed, random_adapter) -> tuple[ModelConfig, Params, Adapter, TrainStep]:
    spec, _ = packed
    config = ModelConfig.from_hf(spec.model)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        adapter = random_adapter(config, LoraSpec(r=4, lora_dropout=0.0))
        params = load_params(spec.model, config, np.dtype("float32"), mesh)
        step = build_step(config, spec, mesh, make_schedule(spec.optim, 1), adapter)
    return config, params, adapter, step


def changed(batch: Batch, segment: int, seed: int = 0) -> Batch:
    """The batch with other tokens wherever `segment` stands in the row."""
    rng = np.random.default_rng(seed)
    tokens = batch.tokens.copy()
    where = batch.segment_ids[ROW] == segment
    tokens[ROW, where] = (tokens[ROW, where] + rng.integers(1, 200, where.sum())) % 256
    return dataclasses.replace(batch, tokens=tokens)


def supervised_by(batch: Batch, segment: int) -> Batch:
    """The batch with the loss of all segments but one switched off."""
    of = batch.segment_ids.reshape(batch.index.shape[0], -1)
    rows = np.arange(of.size).reshape(of.shape) // batch.tokens.shape[1]
    mine = np.take_along_axis((of == segment) & (rows == ROW), batch.index, axis=1)
    return dataclasses.replace(batch, weights=np.where(mine, batch.weights, 0).astype(np.float32))


def test_hidden_states_of_other_examples_do_not_change(packed, model):
    _, batch = packed
    config, params, adapter, _ = model

    @jax.jit
    def hidden(tokens: jax.Array) -> jax.Array:
        return forward(
            params,
            config,
            tokens,
            batch.positions,
            batch.segment_ids,
            batch.suffix_ids,
            adapter=adapter,
            dropout_key=None,
        )

    before = np.asarray(hidden(batch.tokens))
    for segment in range(1, batch.segment_ids[ROW].max() + 1):
        after = np.asarray(hidden(changed(batch, segment).tokens))
        other = batch.segment_ids != segment
        other[np.arange(len(other)) != ROW] = True
        other &= batch.segment_ids > 0
        np.testing.assert_array_equal(after[other], before[other])
        mine = (batch.segment_ids == segment) & ~other
        assert np.abs(after[mine] - before[mine]).max() > 1e-3, "the change must be felt somewhere"


def test_losses_of_other_examples_do_not_change(packed, model):
    _, batch = packed
    _, params, adapter, step = model
    state = step.start(jax.tree.map(np.array, adapter))

    def loss(of: Batch) -> tuple[float, float]:
        total, weight = step.evaluate(state, params, step.place(of))
        return float(total), float(weight)

    segments = range(1, batch.segment_ids[ROW].max() + 1)
    before = {segment: loss(supervised_by(batch, segment)) for segment in segments}
    assert all(weight > 0 for _, weight in before.values())
    for altered in segments:
        after = {segment: loss(supervised_by(changed(batch, altered), segment)) for segment in segments}
        assert {segment for segment in segments if after[segment] != before[segment]} == {altered}


def test_suffixes_of_one_context_do_not_see_one_another(packed, model):
    """The same exactness inside a group: another question of the same context changes nothing."""
    _, batch = packed
    config, params, adapter, _ = model
    segment = next(
        s for s in range(1, 99) if batch.suffix_ids[ROW][batch.segment_ids[ROW] == s].max(initial=0) >= 2
    )
    second = (batch.segment_ids[ROW] == segment) & (batch.suffix_ids[ROW] == 2)
    tokens = batch.tokens.copy()
    tokens[ROW, second] = (tokens[ROW, second] + 17) % 256

    @jax.jit
    def hidden(tokens: jax.Array) -> jax.Array:
        args = (batch.positions, batch.segment_ids, batch.suffix_ids)
        return forward(params, config, tokens, *args, adapter=adapter, dropout_key=None)

    before, after = (np.asarray(hidden(t))[ROW] for t in (batch.tokens, tokens))
    others = (batch.segment_ids[ROW] > 0) & ~second
    np.testing.assert_array_equal(after[others], before[others])
    assert np.abs(after[second] - before[second]).max() > 1e-3
