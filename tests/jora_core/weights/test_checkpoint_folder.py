"""Model folders: read whatever way they are split, written so that transformers reads them, refused if
damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors
from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.base.errors import InputError
from jora_core.weights.checkpoint_folder import hf_tensors, save_params
from jora_core.weights.load_params import load_params
from jora_core.weights.merge_adapters import write_merged
from jora_core.weights.model_folder import read_model
from jora_core.weights.tensor_store import TensorStore, write_tensors

NORM = "model.layers.1.input_layernorm.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture()
def folder(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be damaged."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "model"))


def change(folder: Path, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    store = TensorStore.of_model(folder)
    tensors = {name: store.read(name) for name in store.names()}
    edit(tensors)
    write_tensors(folder / "model.safetensors", tensors)


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_params(folder, ModelConfig.from_hf(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_shards_and_one_file_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_hf(folder)
    whole = load_params(folder, config)
    store = TensorStore.of_model(folder)
    names = store.names()
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        write_tensors(folder / file, {name: store.read(name) for name in names if files[name] == file})
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": files})
    split = load_params(folder, config)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, split))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors does not exist" in refused(folder)
    write_json(folder / "model.safetensors.index.json", {"weight_map": dict.fromkeys(names, files[names[0]])})
    assert f"has no tensor {names[1]}" in refused(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_what_is_saved(tmp_path: Path, dtype: str, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    from jora_core.parameters.initialize import init_params

    config = ModelConfig(50, 16, 24, 1, 2, 1, 8, tie_embeddings=tied)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    save_params(params, config, tmp_path, jnp.dtype(dtype))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert str(theirs.dtype) == f"torch.{dtype}"
    state = theirs.state_dict()
    for name, value in hf_tensors(params, config, dtype).items():
        np.testing.assert_array_equal(state[name].float().numpy(), value.astype(np.float32))
    assert ("lm_head.weight" in expected_tensors(config)) is not tied
    again = load_params(tmp_path, config, jnp.dtype(dtype))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a.astype(dtype) == b).all()), params, again))


def test_a_tied_checkpoint_may_repeat_its_head(folder: Path) -> None:
    change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert load_params(folder, ModelConfig.from_hf(folder)).head is None


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(NORM), f"tensor {NORM} is missing from model.safetensors"),
        (lambda t: t.update(extra=t[NORM]), "unexpected tensor extra"),
        (
            lambda t: t.update({DOWN: t[DOWN].T.copy()}),
            f"tensor {DOWN} has shape (64, 32), expected (32, 64)",
        ),
        (lambda t: t[DOWN].__setitem__((3, 4), np.nan), f"tensor {DOWN} holds NaN"),
        (lambda t: t[NORM].__setitem__(0, np.inf), f"tensor {NORM} holds NaN or infinite"),
        (lambda t: t.update({NORM: t[NORM].astype(np.int32)}), f"tensor {NORM} is I32, expected floats"),
    ],
    ids=["missing", "unexpected", "shape", "nan", "infinite", "integers"],
)
def test_damaged_tensors_are_named(folder: Path, edit: Callable[[dict], Any], said: str) -> None:
    change(folder, edit)
    assert said in refused(folder)


def test_damaged_files_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (len(whole) - 9, 100, 4, 0):
        path.write_bytes(whole[:size])
        assert "model.safetensors is truncated or not a safetensors file" in refused(folder)
    path.unlink()
    assert "model.safetensors does not exist" in refused(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pickle files only" in refused(folder)


def test_a_tokenizer_may_have_more_tokens_than_the_embedding_rows(folder: Path) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    change(folder, lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:300]}))
    path.write_text(json.dumps(fields | {"vocab_size": 300}))
    assert load_params(folder, ModelConfig.from_hf(folder)).embedding.shape[0] == 300


def test_a_head_of_its_own_in_a_tied_model_is_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert read_model(folder).tie_embeddings
    change(folder, lambda t: t["lm_head.weight"].__setitem__((7, 3), 0.5))
    config = read_model(folder)
    assert not config.tie_embeddings
    assert "lm_head.weight is used" in capsys.readouterr().err
    theirs = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
    np.testing.assert_array_equal(np.asarray(load_params(folder, config).head), theirs.detach().numpy())
    write_merged(folder, config, [], tmp_path / "merged")
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"] is False
    assert read_model(tmp_path / "merged") == config


def test_large_finite_values_are_accepted(folder: Path) -> None:
    # Their float32 sum overflows; that alone must not be taken for damage.
    change(folder, lambda t: t[DOWN].__setitem__(slice(None), 3e38))
    load_params(folder, ModelConfig.from_hf(folder))


def test_a_writer_leaves_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError("stopped")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_json(tmp_path / "file" / "result.json", {})
