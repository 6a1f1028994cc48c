"""A wrong model or adapter folder: one line that names what is wrong, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jora_core import hf
from jora_core.architecture.model_config import ModelConfig
from jora_core.commands.run_command import run_command
from jora_core.commands.train import main as train_main
from jora_core.parameters.trees import Adapter
from jora_core.specs.lora import LoraSpec
from jora_core.specs.train import TrainSpec
from jora_core.weights.adapter_folder import save_adapter
from jora_core.weights.tensor_store import TensorStore, write_tensors

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture()
def folders(tiny_weights: Path, random_adapter: Callable[..., Adapter], tmp_path: Path) -> tuple[Path, Path]:
    """A base and a good adapter for it, both to be spoiled."""
    base = Path(shutil.copytree(tiny_weights, tmp_path / "base"))
    spec = LoraSpec.model_validate({"r": 2})
    save_adapter(random_adapter(ModelConfig.from_hf(base), spec), tmp_path / "adapter", spec, "base")
    return base, tmp_path / "adapter"


def config(**changes: Any) -> Callable[[Path, Path], None]:
    """Spoil adapter_config.json: replace fields, or take those away that are given as ...."""

    def spoil(base: Path, adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        fields = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))

    return spoil


def model(**changes: Any) -> Callable[[Path, Path], None]:
    def spoil(base: Path, adapter: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def tensors(of: str, change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path, Path], None]:
    """Rewrite the safetensors file of the base or the adapter."""

    def spoil(base: Path, adapter: Path) -> None:
        path = base / "model.safetensors" if of == "base" else adapter / "adapter_model.safetensors"
        store = TensorStore.of_file(path)
        values = {name: store.read(name) for name in store.names()}
        change(values)
        write_tensors(path, values)

    return spoil


def fill(name: str, value: float) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda values: values.update({name: np.full_like(values[name], value)})


def wider(values: dict[str, np.ndarray]) -> None:
    """The adapter of a base that is twice as wide."""
    for name in values:
        if "lora_A" in name:
            values[name] = np.concatenate([values[name]] * 2, axis=1)


def deeper(values: dict[str, np.ndarray]) -> None:
    values |= {
        name.replace("layers.1", "layers.2"): value for name, value in values.items() if "layers.1" in name
    }


def cut(of: str, name: str) -> Callable[[Path, Path], None]:
    def spoil(base: Path, adapter: Path) -> None:
        path = (base if of == "base" else adapter) / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def remove(of: str, *names: str) -> Callable[[Path, Path], None]:
    def spoil(base: Path, adapter: Path) -> None:
        for name in names:
            ((base if of == "base" else adapter) / name).unlink()

    return spoil


def pickled(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


CASES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "r differs": (
        config(r=3),
        f"tensor {Q}.lora_A.weight has shape (2, 32), of rank 2, but adapter_config.json says r=3",
    ),
    "r missing": (config(r=...), "r is missing"),
    "r is text": (config(r="8"), "r: expected a whole number, got '8'"),
    "r is 0": (config(r=0), "r: expected at least 1, got 0"),
    "alpha missing": (config(lora_alpha=...), "lora_alpha is missing; write the value"),
    "alpha is 0": (config(lora_alpha=0), "lora_alpha: expected more than 0, got 0"),
    "targets missing": (config(target_modules=None), "target_modules is missing"),
    "targets of another family": (
        config(target_modules=["query_key_value"]),
        "query_key_value matches no projection",
    ),
    "more targets than tensors": (
        config(target_modules=["q_proj", "k_proj", "v_proj"]),
        "k_proj.lora_A.weight is missing",
    ),
    "fewer targets than tensors": (config(target_modules=["q_proj"]), "unexpected tensor"),
    "targets in one layer": (
        config(target_modules=r"model\.layers\.0\..*\.(q|v)_proj"),
        "picks q_proj in layers 0 alone",
    ),
    "targets are a number": (config(target_modules=3), "target_modules must be a list of names or a pattern"),
    "broken pattern": (config(target_modules="(q_proj"), "is no regular expression"),
    "head": (config(target_modules=["q_proj", "lm_head"]), "lm_head, which cannot have an adapter"),
    "IA3": (config(peft_type="IA3"), "peft_type IA3 is not supported; expected LORA"),
    "no method": (config(peft_type=...), "peft_type None is not supported"),
    "classifier": (config(task_type="SEQ_CLS"), "task_type SEQ_CLS"),
    "bias": (config(bias="all"), 'bias="all" is not supported'),
    "modules_to_save": (config(modules_to_save=["lm_head"]), 'modules_to_save=["lm_head"] is not supported'),
    "rank_pattern": (config(rank_pattern={"q_proj": 4}), "of rank 2, but adapter_config.json says r=4"),
    "rank_pattern of text": (config(rank_pattern={"q_proj": "4"}), "rank_pattern.q_proj"),
    "alpha_pattern": (config(alpha_pattern={"q_proj": -4}), "alpha_pattern.q_proj"),
    "broken alpha_pattern": (config(alpha_pattern={"(": 4}), "is no regular expression"),
    "layers_to_transform": (
        config(layers_to_transform=[0]),
        "unexpected tensor base_model.model.model.layers.1",
    ),
    "a layer beyond": (config(layers_to_transform=[7]), "layers_to_transform: the model has no layer 7"),
    "fan_in_fan_out": (config(fan_in_fan_out=True), "fan_in_fan_out=true"),
    "lora_bias": (config(lora_bias=True), "lora_bias=true"),
    "aLoRA": (config(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens=[1, 2]"),
    "of the future": (config(spectral_gate={"k": 1}), 'spectral_gate={"k": 1} is not supported'),
    "PiSSA": (config(init_lora_weights="pissa"), 'init_lora_weights="pissa" changes the base weights'),
    "DoRA without magnitudes": (config(use_dora=True), "lora_magnitude_vector is missing"),
    "magnitudes without DoRA": (
        tensors("adapter", lambda v: v.update({f"{Q}.lora_magnitude_vector": np.ones(32, np.float32)})),
        f"unexpected tensor {Q}.lora_magnitude_vector",
    ),
    "NaN in the adapter": (
        tensors("adapter", fill(f"{Q}.lora_B.weight", np.nan)),
        f"tensor {Q}.lora_B.weight holds NaN",
    ),
    "adapter of a wider base": (
        tensors("adapter", wider),
        "this model's is (2, 32); the adapter was made for another base",
    ),
    "adapter of a deeper base": (
        tensors("adapter", deeper),
        "is for layer 2, the model's last is 1; the adapter was made",
    ),
    "adapter file cut": (
        cut("adapter", "adapter_model.safetensors"),
        "adapter_model.safetensors is truncated",
    ),
    "adapter config cut": (cut("adapter", "adapter_config.json"), "adapter_config.json is not valid JSON"),
    "adapter file missing": (
        remove("adapter", "adapter_model.safetensors"),
        "adapter_model.safetensors does not exist",
    ),
    "adapter pickled": (pickled, "but adapter_model.bin, a pickle file; load it with peft"),
    "NaN in the base": (
        tensors("base", fill("model.layers.1.mlp.up_proj.weight", np.inf)),
        "tensor model.layers.1.mlp.up_proj.weight holds NaN or infinite values",
    ),
    "base file cut": (cut("base", "model.safetensors"), "model.safetensors is truncated"),
    "base file missing": (remove("base", "model.safetensors"), "model.safetensors does not exist"),
    "base config missing": (remove("base", "config.json"), "has no config.json"),
    "base config cut": (cut("base", "config.json"), "config.json is not valid JSON"),
    "foreign architecture": (
        model(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"]),
        "architecture",
    ),
    "base of another width": (model(intermediate_size=80), "has shape"),
}


def spoiled(folders: tuple[Path, Path], case: str) -> tuple[Path, Path, str]:
    spoil, said = CASES[case]
    spoil(*folders)
    return *folders, said


def assert_one_line(err: str, said: str) -> None:
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert said in err


@pytest.mark.parametrize("case", list(CASES))
def test_merging_says_it_in_one_line(
    folders: tuple[Path, Path], case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, said = spoiled(folders, case)
    # The file behind adapter_config.json is looked for by find_adapter; `main` is the command itself.
    assert hf.main([str(base), str(adapter), str(tmp_path / "merged")]) == 2
    assert_one_line(capsys.readouterr().err, said)
    assert not list(tmp_path.glob("merged/*"))


def test_missing_folders(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = folders
    nowhere, merged = str(tmp_path / "nowhere"), str(tmp_path / "merged")
    for arguments, said in [
        ([nowhere, str(adapter), merged], "model folder"),
        ([str(base), nowhere, merged], "holds no adapter_config.json"),
        ([str(base), str(adapter), merged, "--then", nowhere], "holds no adapter_config.json"),
        ([str(base), str(adapter), str(base)], "is the base model itself"),
    ]:
        assert hf.main(arguments) == 2
        assert_one_line(capsys.readouterr().err, said)


TRAINING = {
    "r differs",
    "alpha missing",
    "adapter of a wider base",
    "NaN in the adapter",
    "NaN in the base",
    "foreign architecture",
    "fewer targets than tensors",
}


@pytest.mark.parametrize("case", sorted(TRAINING))
def test_training_says_it_in_one_line(
    folders: tuple[Path, Path],
    case: str,
    alpaca_rows: Callable[..., list[dict[str, Any]]],
    write_rows: Callable[[Path, list[dict[str, Any]]], Path],
    train_order: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, adapter, said = spoiled(folders, case)
    records = write_rows(tmp_path / "records.parquet", alpaca_rows(contexts=2))
    lora = {"r": 2, "lora_alpha": 16}
    order = train_order(base, records, adapter=str(adapter), lora=lora)
    (tmp_path / "order.json").write_text(json.dumps(order))
    with pytest.raises(SystemExit) as stopped:
        run_command(TrainSpec, train_main, ["--spec", str(tmp_path / "order.json")])
    assert stopped.value.code == 2
    assert_one_line(capsys.readouterr().err, said)


def test_the_process_itself(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """`python -m jora_core.hf` and `jora merge`, whole: what the library prints while loading included."""
    base, adapter, said = spoiled(folders, "alpha missing")
    merged = str(tmp_path / "merged")
    root = str(Path(__file__).parents[3])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    for command in (
        ["-m", "jora_core.hf", str(base), str(adapter), merged],
        ["-m", "flows.cli", "merge", str(base), str(adapter), merged],
    ):
        done = subprocess.run(
            [sys.executable, *command], env=env, capture_output=True, text=True, timeout=250, cwd=tmp_path
        )
        assert done.returncode == 2, done.stderr
        assert_one_line(done.stderr, said)
        assert not Path(merged).exists()
