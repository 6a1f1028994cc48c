"""The same training on one device and on four virtual ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import json, sys
from jora_core.spec import TrainSpec
from jora_core.train import train
for order in json.loads(open(sys.argv[1]).read()):
    train(TrainSpec.model_validate(order))
"""


@pytest.fixture(scope="module")
def losses(tiny_weights, alpaca_rows, write_rows, tmp_path_factory) -> dict[str, list[float]]:
    """Loss per step (dropout, packing, sharing, accumulation) per mesh and kind of training."""
    folder = tmp_path_factory.mktemp("mesh")
    records = write_rows(folder / "records.parquet", alpaca_rows(contexts=16))
    orders = {}
    for name, data, tensor, changes in [
        ("one", 1, 1, {}),
        ("tensor4", 1, 4, {}),
        ("data2tensor2", 2, 2, {}),
        ("one-apart", 1, 1, {"sharing": "off", "lora_dropout": 0.0}),
        ("data2tensor2-shared", 2, 2, {"sharing": "auto", "lora_dropout": 0.0}),
        ("all-one", 1, 1, {"trainable": "all"}),
        ("all-data2tensor2", 2, 2, {"trainable": "all"}),
    ]:
        # With sharing the batches of an epoch differ: only a batch of everything is comparable.
        whole = "sharing" in changes
        orders[name] = {
            "model": str(tiny_weights),
            "trainable": changes.get("trainable", "lora"),
            "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": changes.get("lora_dropout", 0.1)},
            "optim": {"learning_rate": 1e-3 if "trainable" in changes else 1e-2},
            "data": {
                "records": str(records),
                "max_seq_len": 128,
                "tokens_per_batch": 8192 if whole else 384,
                "sharing": changes.get("sharing", "auto"),
            },
            "max_steps": 6 if whole or "trainable" in changes else 20,
            "gradient_accumulation_steps": 1 if whole else 2,
            "mesh": {"data": data, "tensor": tensor},
            "checkpoint_every": 1000,
            "output_dir": str(folder / name),
            "checkpoint_dir": str(folder / f"{name}-checkpoints"),
        }
    path = folder / "orders.json"
    path.write_text(json.dumps(list(orders.values())))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(path)],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for name, order in orders.items():
        lines = (Path(order["output_dir"]) / "metrics.jsonl").read_text().splitlines()
        found[name] = [json.loads(line)["loss"] for line in lines]
    return found


@pytest.mark.parametrize("mesh", ["tensor4", "data2tensor2"])
def test_adapter_losses_equal_one_device(losses, mesh):
    """Key/value heads (2) fewer than the tensor axis (4) included, dropout the same under every mesh."""
    assert len(losses["one"]) == 20
    assert losses[mesh] == pytest.approx(losses["one"], rel=1e-5)


def test_all_parameters_equal_one_device(losses):
    assert losses["all-data2tensor2"] == pytest.approx(losses["all-one"], rel=1e-5)


def test_shared_on_a_mesh_equals_apart_on_one_device(losses):
    assert losses["data2tensor2-shared"] == pytest.approx(losses["one-apart"], rel=1e-5)
