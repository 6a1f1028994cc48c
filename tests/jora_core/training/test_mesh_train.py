"""The same training on one device and on four virtual ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Little optimisation: these programs run for a moment and take long to compile.
_FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
_PROGRAM = """
import json, sys
from jora_core.specs.train import TrainSpec
from jora_core.training.train import train
for order in json.loads(open(sys.argv[1]).read()):
    train(TrainSpec.model_validate(order))
"""


@pytest.fixture(scope="module")
def losses(tiny_weights, alpaca_rows, write_rows, tmp_path_factory) -> dict[str, list[float]]:
    """Loss per step (dropout, noise, packing, sharing, accumulation) per mesh and kind of training."""
    folder = tmp_path_factory.mktemp("mesh")
    records = write_rows(folder / "records.parquet", alpaca_rows(contexts=16))
    orders = {}
    for name, data, tensor, trainable, sharing, precision in [
        ("one", 1, 1, "lora", "auto", "default"),
        ("tensor4", 1, 4, "lora", "auto", "default"),
        ("data2tensor2", 2, 2, "lora", "auto", "default"),
        ("all-apart-one", 1, 1, "all", "off", "default"),
        ("all-shared-data2tensor2", 2, 2, "all", "auto", "default"),
        ("all-shared-data2tensor2-bfloat16", 2, 2, "all", "auto", "bfloat16"),
    ]:
        # With sharing the batches of an epoch differ: only a batch of everything is comparable.
        whole = trainable == "all"
        orders[name] = {
            "model": str(tiny_weights),
            "trainable": trainable,
            "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
            "optim": {"learning_rate": 1e-3 if whole else 1e-2},
            "data": {
                "records": str(records),
                "max_seq_len": 128,
                "tokens_per_batch": 8192 if whole else 384,
                "sharing": sharing,
            },
            "max_steps": 5 if whole else 20,
            "gradient_accumulation_steps": 1 if whole else 2,
            # Contexts apart draw a noise each, a shared one draws one: the runs of "all" are compared.
            "neftune_noise_alpha": None if whole else 5.0,
            "matmul_precision": precision,
            "mesh": {"data": data, "tensor": tensor},
            "checkpoint_every": 1000,
            "output_dir": str(folder / name),
            "checkpoint_dir": str(folder / f"{name}-checkpoints"),
        }
    path = folder / "orders.json"
    path.write_text(json.dumps(list(orders.values())))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(path)],
        env=os.environ | {"XLA_FLAGS": _FLAGS, "JAX_PLATFORMS": "cpu"},
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


def test_all_parameters_shared_on_a_mesh_equal_apart_on_one_device(losses):
    """Sharing contexts changes no gradient, under a mesh as well: five updates later the losses agree."""
    assert losses["all-shared-data2tensor2"] == pytest.approx(losses["all-apart-one"], rel=1e-5)


def test_bfloat16_products_train_all_parameters_on_a_mesh(losses):
    """A gradient that a device keeps to itself would be a half or a quarter of the right one."""
    narrow = losses["all-shared-data2tensor2-bfloat16"]
    assert narrow != losses["all-shared-data2tensor2"]
    assert narrow == pytest.approx(losses["all-apart-one"], rel=2e-3)
