"""Which training a phase goes on from, what its key sees, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.configuration.load import load_config
from flows.stages.finetune import FINETUNE_TASK
from jora_core.base.errors import InputError

KEYS = ("1a2b3c4d" + "0" * 56, "1a2b9999" + "0" * 56)


def config(folder: Path, **phase: Any) -> Any:
    raw = {
        "model": {"path": "model"},
        "store": str(folder / "runs"),
        "context": {"tables": {"source": "tables"}},
        "phases": [{"stage": "finetune-task", "tasks": ["tables"], "max_steps": 9, **phase}],
    }
    (folder / "model").mkdir(exist_ok=True)
    (folder / "jora.yaml").write_text(yaml.safe_dump(raw))
    return load_config(folder / "jora.yaml")


@pytest.fixture()
def trained(tmp_path: Path) -> Path:
    for number, key in enumerate(KEYS):
        state = tmp_path / "runs" / "finetune-task" / key / "training_state"
        state.mkdir(parents=True)
        (state / "training.json").write_text(json.dumps({"step": number}))
    return tmp_path


def test_a_training_is_named_by_the_beginning_of_its_key(trained: Path) -> None:
    found = FINETUNE_TASK.inputs(config(trained, continue_from="1a2b3c"))
    assert found == {
        "continue_from/training.json": trained
        / "runs/finetune-task"
        / KEYS[0]
        / "training_state/training.json"
    }
    # By content: how it was named is no part of the key.
    assert FINETUNE_TASK.settings(config(trained, continue_from="1a2b3c")) == FINETUNE_TASK.settings(
        config(trained)
    )
    for given, said in (
        ("1a2b", "several trainings"),
        ("ffff", "no finished training"),
        ("../x", "no finished"),
    ):
        with pytest.raises(
            InputError, match=rf"phases\.0\.continue_from: .*: {said}.* 1a2b3c4d0000, 1a2b99990000"
        ):
            FINETUNE_TASK.inputs(config(trained, continue_from=given))
    (trained / "runs/finetune-task" / KEYS[0] / "training_state/training.json").unlink()
    with pytest.raises(InputError, match="kept no state; set keep_state"):
        FINETUNE_TASK.inputs(config(trained, continue_from="1a2b3c"))


def test_an_adapter_from_elsewhere_begins_the_first_phase(tmp_path: Path) -> None:
    found = FINETUNE_TASK.inputs(config(tmp_path, init_adapter="mine"))
    assert found == {
        f"init_adapter/{name}": tmp_path / "mine" / name
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
