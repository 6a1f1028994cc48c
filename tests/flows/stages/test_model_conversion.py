"""Base models in other layouts: the stage `convert-model`, later stages, and `jora convert FILE DIR`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flows.commands.models.convert_file import convert_file
from flows.commands.models.fetch import fetch_model
from flows.configuration.hub_models import fetched_folder
from flows.configuration.load import load_config
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.keys import identify
from flows.engine.run_stage import execute_stage
from flows.stages import STAGES, convert_model
from flows.stages.converted_model import converted, finished_folder
from flows.stages.model_conversion import converted_folder
from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.weights.gguf.write_gguf import write_gguf
from tests.jora_core.weights.gguf.gguf_cases import make_folder


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a tiny Llama."""
    folder = tmp_path_factory.mktemp("gguf")
    make_folder(folder / "hf", "llama")
    write_gguf(folder / "hf", ModelConfig.from_hf(folder / "hf"), folder / "tiny.gguf", "f16", "tiny")
    return folder / "tiny.gguf"


def config_of(model: Path | str, folder: Path) -> PipelineConfig:
    return load_config(None, [f"model.path={model}", f"store={folder / 'runs'}"])


def test_a_gguf_file_is_converted_once_and_later_stages_read_the_folder(gguf: Path, tmp_path: Path) -> None:
    config = config_of(gguf, tmp_path)
    store = Store(Path(config.store))
    assert finished_folder(config, store, STAGES) is None
    with pytest.raises(InputError, match="is not converted yet; run `jora convert"):
        converted(config, store, STAGES)
    made = execute_stage("convert-model", config, store, STAGES)
    folder = finished_folder(config, store, STAGES)
    assert folder == Path(made.path) / "model"
    assert ModelConfig.from_hf(folder).hidden_size == 64
    assert converted(config, store, STAGES).model.path == str(folder)
    assert execute_stage("convert-model", config, store, STAGES).cached
    # The folder's files are part of what later stages read: a damaged one is no input.
    assert convert_model.upstream(config).reads == ("model.json", "model/*")
    assert convert_model.upstream(config_of("data/tiny-llama", tmp_path)).reads == ("model.json",)


def test_keys_follow_the_content_of_the_file_and_not_its_place(gguf: Path, tmp_path: Path) -> None:
    moved = tmp_path / "other.gguf"
    moved.write_bytes(gguf.read_bytes())
    keys = [
        {name: identity.key for name, identity in identify(config_of(path, tmp_path), STAGES).items()}
        for path in (gguf, moved)
    ]
    assert keys[0] == keys[1]
    moved.write_bytes(gguf.read_bytes() + b"\0")
    changed = identify(config_of(moved, tmp_path), STAGES)
    assert {name for name, identity in changed.items() if identity.key != keys[0][name]} >= {
        "convert-model",
        "finetune-structure",
        "export",
    }


def test_the_key_of_a_plain_folder_knows_no_converter(tmp_path: Path) -> None:
    identity = identify(config_of("data/tiny-llama", tmp_path), STAGES, until="convert-model")[
        "convert-model"
    ]
    assert "conversion" not in identity.config
    assert not [name for name in identity.code if "gguf" in name]


def test_convert_writes_a_whole_folder_or_none(gguf: Path, tmp_path: Path) -> None:
    convert_file(gguf, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    with pytest.raises(InputError, match="exists already"):
        convert_file(gguf, tmp_path / "out")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes()[:-4000])
    with pytest.raises(InputError, match="is truncated"):
        convert_file(broken, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]


def test_a_model_outside_of_a_store_is_converted_once(gguf: Path, tmp_path: Path) -> None:
    """As `jora generate --model FILE.gguf` does."""
    file = tmp_path / "own.gguf"
    file.write_bytes(gguf.read_bytes())
    said: list[str] = []
    folders = [
        converted_folder(file, tmp_path / "cache", tmp_path / f"work{number}", said.append)
        for number in (1, 2)
    ]
    assert folders[0] == folders[1] and len(said) == 1 and str(folders[0]) in said[0]
    assert ModelConfig.from_hf(folders[0]).hidden_size == 64
    assert converted_folder(folders[0], tmp_path / "cache", tmp_path, said.append) == folders[0]
    os.utime(file, ns=(1, 1))
    assert converted_folder(file, tmp_path / "cache", tmp_path / "work3", said.append) != folders[0]


def test_a_fetched_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))
    config = config_of("smollm2-135m", tmp_path)
    assert Path(config.model.path) == tmp_path / "cache" / "models" / "smollm2-135m" / "hf"
    with pytest.raises(InputError, match="smollm2-135m is not fetched yet; run `jora fetch smollm2-135m`"):
        identify(config, STAGES, until="convert-model")
    fetched_folder("smollm2-135m").mkdir(parents=True)
    assert fetch_model("smollm2-135m") == fetched_folder("smollm2-135m")  # there already
    with pytest.raises(InputError, match="known are smollm2-135m, gemma3-270m"):
        fetch_model("gpt-5")
