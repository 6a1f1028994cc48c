"""Early stopping and the best weights: decided by the validation loss alone, the same after any kill."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jora_core.specs.train import TrainSpec
from jora_core.training import loop
from jora_core.training import train as training
from jora_core.training.early_stopping import EarlyStopping
from jora_core.training.loop import DivergedError
from jora_core.training.metrics_log import MetricsLog
from jora_core.training.train import train

STEPS = 12


class Killed(BaseException):
    """Stands for a kill; no handler of the loop may catch it."""


def after(losses: list[float], min_delta: float = 0.0) -> list[EarlyStopping]:
    steps = enumerate(losses, 1)
    add = lambda state, new: state.after(*new, min_delta)  # noqa: E731
    return list(itertools.accumulate(steps, add, initial=EarlyStopping()))[1:]


def test_early_stopping_state():
    plain = after([3.0, 2.0, 2.5, 2.0, 1.9])
    assert [s.best_step for s in plain] == [1, 2, 2, 2, 5]
    assert [s.without_improvement for s in plain] == [0, 0, 1, 2, 0]
    demanding = after([3.0, 2.9, 2.8, 2.5, 2.45], min_delta=0.25)
    assert [s.best_step for s in demanding] == [1, 2, 3, 4, 5]
    # Two steps of 0.1 are too little each, but 0.5 in all is enough.
    assert [s.without_improvement for s in demanding] == [0, 1, 2, 0, 1]


@pytest.fixture()
def order(tiny_weights, alpaca_rows, write_rows, train_order, tmp_path) -> dict[str, Any]:
    records = write_rows(tmp_path / "records.parquet", alpaca_rows(contexts=20))
    return train_order(
        tiny_weights,
        records,
        max_steps=STEPS,
        evaluate_every=2,
        checkpoint_every=3,
        data={"validation_share": 0.3, "cache_dir": str(tmp_path / "tokens")},
    )


@pytest.fixture()
def scripted(monkeypatch) -> dict[int, float]:
    """Validation losses by step, instead of the real ones."""
    losses: dict[int, float] = {}
    monkeypatch.setattr(loop, "validation_loss", lambda run, state, number: losses[number])
    return losses


def adapter(order: dict[str, Any]) -> bytes:
    return (Path(order["output_dir"]) / "adapter_model.safetensors").read_bytes()


def metrics(order: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (Path(order["output_dir"]) / "metrics.jsonl").read_text().splitlines()]


def copy_of(order: dict[str, Any], tmp_path: Path, name: str, **changes: Any) -> dict[str, Any]:
    folders = {"output_dir": str(tmp_path / name), "checkpoint_dir": str(tmp_path / f"{name}-checkpoints")}
    return order | folders | changes


def test_stops_when_nothing_gets_better_and_writes_the_best(order, scripted, tmp_path, capfd):
    scripted |= {2: 3.0, 4: 2.0, 6: 2.5, 8: 1.995, 10: 2.1, 12: 0.1}
    stopping = order | {"early_stopping_patience": 3, "early_stopping_min_delta": 0.01, "keep_best": True}
    result = train(TrainSpec.model_validate(stopping))
    assert "early stopping after step 10 of 12" in capfd.readouterr().err
    wanted = {"steps": 10, "stopped_early": True, "best_step": 8, "best_validation_loss": 1.995}
    assert {name: result[name] for name in wanted} == wanted and result["weights_of_step"] == 8
    assert [row["step"] for row in metrics(stopping)] == list(range(1, 11))
    assert {row["step"] for row in metrics(stopping) if "validation_loss" in row} == {2, 4, 6, 8, 10}
    # The records of steps 9 and 10 taught weights that are not kept.
    seen = sum(row["records"] for row in metrics(stopping)[:8])
    assert result["trained_records"]["times"] == seen

    # Step 8's weights are those of the same run, told that step 8 is the last to be better.
    last = copy_of(order, tmp_path, "last", keep_best=True)
    scripted |= {12: 3.0}
    train(TrainSpec.model_validate(last))
    assert adapter(last) == adapter(stopping)
    plain = copy_of(order, tmp_path, "plain")
    train(TrainSpec.model_validate(plain))
    assert adapter(plain) != adapter(stopping)
    # Once more: nothing is left to do, and the same comes out.
    again = stopping | {"output_dir": str(tmp_path / "again")}
    assert train(TrainSpec.model_validate(again))["best_step"] == 8
    assert adapter(again) == adapter(stopping)


@pytest.mark.slow
def test_best_and_patience_survive_kills(order, scripted, tmp_path, monkeypatch):
    scripted |= {2: 3.0, 4: 1.0, 6: 1.5, 8: 1.2, 10: 1.1, 12: 0.5}
    changes = {"early_stopping_patience": 3, "keep_best": True, "keep_checkpoints": 1}
    whole = copy_of(order, tmp_path, "whole", **changes)
    wanted = train(TrainSpec.model_validate(whole))
    assert (wanted["steps"], wanted["best_step"]) == (10, 4)
    broken = copy_of(order, tmp_path, "broken", **changes)
    write = MetricsLog.write
    for step in sorted(random.Random(3).sample(range(1, 11), 5)):

        def deadly(self: MetricsLog, row: dict[str, Any], step: int = step) -> None:
            write(self, row)
            if row["step"] == step:
                raise Killed

        monkeypatch.setattr(MetricsLog, "write", deadly)
        with pytest.raises(Killed):
            train(TrainSpec.model_validate(broken))
    monkeypatch.setattr(MetricsLog, "write", write)
    found = train(TrainSpec.model_validate(broken))
    same = ("steps", "best_step", "best_validation_loss", "weights_of_step", "final_loss")
    assert {name: found[name] for name in same} == {name: wanted[name] for name in same}
    assert adapter(broken) == adapter(whole)
    # One newest and the best stay, whatever came between.
    kept = {int(path.name) for path in (Path(broken["checkpoint_dir"]) / "steps").iterdir()}
    assert kept == {4, 10}


def test_real_validation_losses_choose_the_weights(order, tmp_path):
    """With a rate that destroys the model late, the best weights have the loss that the log says."""
    hot = copy_of(
        order,
        tmp_path,
        "hot",
        keep_best=True,
        optim={"learning_rate": 1.0, "schedule": "constant", "warmup_ratio": 0.9},
    )
    result = train(TrainSpec.model_validate(hot))
    losses = {row["step"]: row["validation_loss"] for row in metrics(hot) if "validation_loss" in row}
    assert set(losses) == {2, 4, 6, 8, 10, 12}
    assert result["best_validation_loss"] == min(losses.values()) == losses[result["best_step"]]
    assert result["best_step"] < STEPS, "the test needs a run that gets worse"
    # The written adapter, evaluated at once by an order that does not learn, has that loss.
    check = copy_of(
        order,
        tmp_path,
        "check",
        adapter=hot["output_dir"],
        max_steps=1,
        evaluate_every=1,
        optim={"learning_rate": 1e-30},
    )
    assert train(TrainSpec.model_validate(check))["validation_loss"] == pytest.approx(
        result["best_validation_loss"], rel=1e-6
    )


def test_a_validation_loss_that_is_no_number_stops_the_run(order, monkeypatch):
    evaluate = training.build_step

    def broken(*args: Any) -> Any:
        step = evaluate(*args)
        object.__setattr__(step, "evaluate", lambda *_: (float("nan"), 1.0))
        return step

    monkeypatch.setattr(training, "build_step", broken)
    with pytest.raises(DivergedError, match="step 2: validation loss nan"):
        train(TrainSpec.model_validate(order))


@pytest.mark.parametrize("changes,says", [
    ({"early_stopping_patience": 2, "data": {"validation_share": 0.0}}, "early_stopping_patience needs a"),
    ({"keep_best": True, "data": {"validation_share": 0.0}}, "keep_best needs .*set validation_share"),
    ({"keep_best": True, "evaluate_every": None}, "keep_best needs evaluate_every"),
])  # fmt: skip
def test_what_needs_a_validation_loss_says_so(order, changes, says):
    data = order["data"] | changes.pop("data", {})
    with pytest.raises(ValidationError, match=says):
        TrainSpec.model_validate(order | changes | {"data": data})
