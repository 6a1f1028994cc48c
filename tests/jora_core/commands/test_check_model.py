"""A checked model is described tensor by tensor; a bad one is refused with one line and exit code 2."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors
from jora_core.base.errors import InputError
from jora_core.commands.check_model import convert
from jora_core.specs.model_files import ConvertSpec
from jora_core.weights.load_params import load_params
from jora_core.weights.tensor_store import TensorStore


def order(model: Path, output: Path, **changes: Any) -> ConvertSpec:
    return ConvertSpec.model_validate({"model": str(model), "output_dir": str(output), **changes})


def test_describes_every_tensor(tiny_weights: Path, tmp_path: Path) -> None:
    result = convert(order(tiny_weights, tmp_path))
    found = json.loads((tmp_path / "model.json").read_text())
    config = ModelConfig.from_hf(tiny_weights)
    assert found["config"] == config.to_hf()
    assert set(found["tensors"]) == set(expected_tensors(config))
    name = "model.layers.0.self_attn.q_proj.weight"
    value = TensorStore.of_model(tiny_weights).read(name)
    assert found["tensors"][name] == {
        "shape": [32, 32],
        "dtype": "float32",
        "sha256": hashlib.sha256(value.tobytes()).hexdigest(),
    }
    params = load_params(tiny_weights, config)
    assert found["parameters"] == result["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert result["bytes"] == (tiny_weights / "model.safetensors").stat().st_size
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_describing_twice_gives_the_same_bytes(tiny_weights: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(order(tiny_weights, tmp_path / name))
    assert (tmp_path / "a" / "model.json").read_bytes() == (tmp_path / "b" / "model.json").read_bytes()


def test_tensor_axis_longer_than_the_devices(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs 64 devices, found \d+ \(cpu\); lower mesh"):
        convert(order(tiny_weights, tmp_path, mesh={"tensor": 64}))


def test_data_axis_of_several_processes(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mesh is that of a training in several processes; the check has the devices of one."""
    assert convert(order(tiny_weights, tmp_path, mesh={"data": 4096}))
    assert "mesh: 4096 x 1 devices are set, this process has" in capsys.readouterr().err


def test_folder_without_a_tokenizer(tiny_weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_weights, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        convert(order(folder, tmp_path / "out"))


def test_command_refuses_a_truncated_file(tiny_weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_weights, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    spec = tmp_path / "spec.json"
    spec.write_text(order(folder, tmp_path / "out").model_dump_json())
    command = [sys.executable, "-m", "jora_core.commands.check_model", "--spec", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {weights} is truncated")
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())
