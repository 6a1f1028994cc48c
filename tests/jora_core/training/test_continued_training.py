"""A finished training goes on to more steps: the same bits as all steps at once, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jora_core.base.errors import InputError
from jora_core.specs.train import TrainSpec
from jora_core.training.train import train


@pytest.fixture()
def order(tiny_weights: Path, alpaca_rows: Any, write_rows: Any, train_order: Any, tmp_path: Path) -> Any:
    """A maker of orders: name and steps, with a constant learning rate."""
    records = write_rows(tmp_path / "records.parquet", alpaca_rows(contexts=8))

    def make(name: str, steps: int, **changes: Any) -> dict[str, Any]:
        optim = {"learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0}
        given = {"optim": optim, "keep_state": True, "max_steps": steps, **changes}
        return train_order(tiny_weights, records, name=name, **given)

    return make


def run(order: dict[str, Any]) -> dict[str, Any]:
    return train(TrainSpec.model_validate(order), verbose=False)


def adapter(order: dict[str, Any]) -> bytes:
    return (Path(order["output_dir"]) / "adapter_model.safetensors").read_bytes()


def test_continued_steps_are_the_steps_of_a_longer_training(order: Any, capsys: Any) -> None:
    whole, first = order("whole", 6), order("first", 3)
    run(whole)
    run(first)
    assert adapter(first) != adapter(whole)
    second = order("second", 6, continue_from=first["output_dir"])
    result = run(second)
    assert adapter(second) == adapter(whole), "bit for bit"
    assert result["steps"] == 6
    # A third training goes on from the second, and one that has the steps already is refused.
    longer = order("longer", 8, continue_from=second["output_dir"])
    assert run(longer)["steps"] == 8
    for changes, said in (
        ({"steps": 6}, "has 6 steps already; raise max_steps"),
        ({"seed": 5}, "was trained with another settings.seed"),
        ({"lora": {"r": 8, "lora_alpha": 8}}, "was trained with another settings.lora.lora_dropout"),
        ({"data": {"tokens_per_batch": 512}}, "was trained with another settings.data.tokens_per_batch"),
        ({"continue_from": first["checkpoint_dir"]}, "has no training_state"),
    ):
        steps = changes.pop("steps", 9)
        refused = order("refused", steps, **{"continue_from": second["output_dir"], **changes})
        with pytest.raises(InputError, match=said):
            run(refused)
