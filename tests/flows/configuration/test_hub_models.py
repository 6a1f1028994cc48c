"""Base models by their name on the hub: from the local cache, never from the network unless it is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from flows.configuration.load import load_config
from flows.configuration.schema import PipelineConfig
from flows.engine.keys import identify
from flows.stages import STAGES
from jora_core.base.errors import InputError
from tests.flows.conftest import Project, configuration

MODEL = Path(__file__).resolve().parents[3] / "data" / "tiny-llama"
OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, and a network that is not there."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))

    def unreachable(*names: Any, **more: Any) -> str:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    return folder


def fill(cache: Path, name: str, commit: str, *, main: bool = True, leave_out: str = "") -> Path:
    """Put a model into a cache as the library does: files are links to blobs beside the snapshots."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for file in MODEL.iterdir():
        if file.is_file() and file.name != leave_out:
            blob = repository / "blobs" / f"{commit[:1]}-{file.name}"
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
    return snapshot


def written(project: Project, **model: Any) -> Path:
    """The project's configuration with another section `model`."""
    project.config_file.write_text(yaml.safe_dump(configuration() | {"model": model}))
    return project.config_file


def test_a_model_in_the_cache_is_used(project: Project, cache: Path) -> None:
    snapshot = fill(cache, "acme/tiny", NEW)
    config = load_config(written(project, path="acme/tiny"))
    assert config.model.path == str(snapshot) and config.context.tokenizer == str(snapshot)
    # What a worker gets names the same commit, also if the main branch moves on.
    assert PipelineConfig.model_validate(config.model_dump(mode="json")).model.path == str(snapshot)
    labels = identify(config, STAGES)["convert-model"].inputs
    assert {"model/config.json", "model/model.safetensors"} <= set(labels)


def test_the_name_alone_is_a_model(project: Project, cache: Path) -> None:
    snapshot = fill(cache, "acme/tiny", NEW)
    project.config_file.write_text(yaml.safe_dump(configuration() | {"model": "acme/tiny"}))
    assert load_config(project.config_file).model.path == str(snapshot)


def test_another_revision_is_another_key(project: Project, cache: Path) -> None:
    (fill(cache, "acme/tiny", OLD, main=False) / "config.json").resolve().write_text(
        (MODEL / "config.json").read_text() + "\n"
    )
    fill(cache, "acme/tiny", NEW)
    keys = []
    for name in ("acme/tiny", f"acme/tiny@{OLD}", f"acme/tiny@{NEW}"):
        config = load_config(written(project, path=name))
        assert Path(config.model.path).name == (OLD if OLD in name else NEW)
        keys.append(identify(config, STAGES)["convert-model"].key)
    assert keys[0] == keys[2] != keys[1]


def test_a_folder_comes_before_the_cache(project: Project, cache: Path) -> None:
    fill(cache, "acme/tiny", NEW)
    (project.folder / "acme" / "tiny").mkdir(parents=True)
    assert load_config(written(project, path="acme/tiny")).model.path == str(project.folder / "acme" / "tiny")


@pytest.mark.parametrize("name", ["acme/tiny", "acme/tiny@v2"])
def test_an_absent_model_says_how_to_fetch_it(project: Project, cache: Path, name: str) -> None:
    config = load_config(written(project, path=name))
    with pytest.raises(InputError) as caught:
        identify(config, STAGES)
    message, (model, _, revision) = str(caught.value), name.partition("@")
    assert "\n" not in message and f"no model {name} in the Hugging Face cache {cache}" in message
    assert f"`hf download {model}{' --revision ' + revision if revision else ''}`" in message


def test_an_absent_path_is_no_name(project: Project, cache: Path) -> None:
    config = load_config(written(project, path="./acme/tiny/v2"))
    with pytest.raises(InputError, match=r"there is no folder .*; give a model folder"):
        identify(config, STAGES)


def test_half_a_model_in_the_cache_is_refused(project: Project, cache: Path) -> None:
    fill(cache, "acme/tiny", NEW, leave_out="config.json")
    with pytest.raises(
        InputError, match=r"only a part of acme/tiny is in the cache .*`hf download acme/tiny`"
    ):
        load_config(written(project, path="acme/tiny"))


def test_download_asks_the_hub(project: Project, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def fetch(name: str, *, revision: str | None, cache_dir: str, **more: Any) -> str:
        asked.append((name, revision))
        return str(fill(Path(cache_dir), name, NEW))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    file = written(project, path="acme/tiny", download=True)
    assert Path(load_config(file).model.path).name == NEW
    assert Path(load_config(file).model.path).name == NEW, "the second time from the cache"
    assert asked == [("acme/tiny", None)]


def test_a_failed_download_is_one_line(
    project: Project, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*names: Any, **more: Any) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        InputError, match=r"cannot be fetched .*no route to host.*`hf download acme/tiny`"
    ) as caught:
        load_config(written(project, path="acme/tiny", download=True))
    assert "\n" not in str(caught.value)


def test_root_with_a_variable(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", str(project.folder / "elsewhere"))
    project.config_file.write_text(yaml.safe_dump(configuration() | {"root": "${WHERE}"}))
    config = load_config(project.config_file)
    assert config.root == str(project.folder / "elsewhere")
    assert config.context.qa is not None
    assert config.context.qa.source == str(project.folder / "elsewhere" / "documents.jsonl")
    monkeypatch.delenv("WHERE")
    with pytest.raises(InputError, match="root: environment variable WHERE is not set"):
        load_config(project.config_file)
