"""Adapters against peft, both ways, and merging against adding."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.config import ModelConfig
from jora_core.errors import InputError
from jora_core.lora import Adapter, init_adapter, load_adapter, merge_adapter, save_adapter
from jora_core.model import Params, forward, unembed
from jora_core.spec import LORA_TARGETS, LoraSpec
from jora_core.storage import TensorStore, write_tensors
from jora_core.weights import load_params

TOKENS = np.random.default_rng(0).integers(0, 300, (2, 12), dtype=np.int32)


@partial(jax.jit, static_argnums=1)
def compute(params: Params, config: ModelConfig, adapter: Adapter | None) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    one = jnp.ones_like(positions)
    hidden = forward(params, config, jnp.asarray(TOKENS), positions, one, 0 * one, adapter=adapter)
    return unembed(params, config, hidden)


def logits(params: Params, config: ModelConfig, adapter: Adapter | None) -> np.ndarray:
    return np.asarray(compute(params, config, adapter))


def peft_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()


@pytest.fixture(scope="module")
def base(tiny_weights: Path) -> tuple[ModelConfig, Params]:
    config = ModelConfig.from_hf(tiny_weights)
    return config, load_params(tiny_weights, config)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], list(LORA_TARGETS)], ids=["qv", "all"])
def test_peft_reads_ours(
    base: tuple[ModelConfig, Params],
    tiny_weights: Path,
    tmp_path: Path,
    random_adapter: Callable[..., Adapter],
    targets: list[str],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config, params = base
    spec = LoraSpec.model_validate({"r": 4, "lora_alpha": 6, "target_modules": targets})
    adapter = random_adapter(config, spec)
    save_adapter(adapter, tmp_path, spec, "base")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_weights), str(tmp_path))
    ours = logits(params, config, adapter)
    assert np.abs(ours - logits(params, config, None)).max() > 0.1
    np.testing.assert_allclose(ours, peft_logits(theirs), atol=1e-4)
    np.testing.assert_allclose(logits(merge_adapter(params, adapter), config, None), ours, atol=1e-4)
    again, read_spec = load_adapter(tmp_path, config)
    assert read_spec == spec
    assert jax.tree.all(jax.tree.map(np.array_equal, again, adapter))


def test_ours_reads_pefts(base: tuple[ModelConfig, Params], tiny_weights: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = LoraConfig(
        r=3, lora_alpha=5, target_modules=["k_proj", "o_proj", "down_proj"], init_lora_weights=False
    )
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_weights), settings)
    theirs.save_pretrained(str(tmp_path))
    config, params = base
    adapter, spec = load_adapter(tmp_path, config)
    assert spec.scale == pytest.approx(5 / 3)
    np.testing.assert_allclose(logits(params, config, adapter), peft_logits(theirs), atol=1e-4)


def test_a_new_adapter_changes_nothing(base: tuple[ModelConfig, Params]) -> None:
    config, params = base
    adapter = init_adapter(config, LoraSpec.model_validate({}), jax.random.key(0))
    np.testing.assert_array_equal(logits(params, config, adapter), logits(params, config, None))
    a = adapter.weights["q_proj"].a
    bound = config.hidden_size**-0.5
    assert a.shape == (2, 16, 32)
    assert 0.9 * bound < float(jnp.abs(a).max()) <= bound


def test_a_target_starts_alike_whatever_stands_beside_it(base: tuple[ModelConfig, Params]) -> None:
    config, _ = base
    make = lambda *names: init_adapter(  # noqa: E731
        config, LoraSpec.model_validate({"target_modules": names}), jax.random.key(0)
    )
    one, two = make("v_proj"), make("q_proj", "v_proj")
    np.testing.assert_array_equal(one.weights["v_proj"].a, two.weights["v_proj"].a)


def test_merging_a_bfloat16_base_rounds_once(
    base: tuple[ModelConfig, Params], random_adapter: Callable[..., Adapter]
) -> None:
    config, params = base
    adapter = random_adapter(config, LoraSpec.model_validate({"r": 2, "target_modules": ["q_proj"]}))
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    lora = adapter.weights["q_proj"]
    update = adapter.scale * np.einsum("lor,lri->loi", lora.b, lora.a)
    expected = (np.asarray(narrow.layers.q_proj, np.float32) + update).astype(jnp.bfloat16)
    got = merge_adapter(narrow, adapter).layers.q_proj
    assert got.dtype == jnp.bfloat16
    assert (np.asarray(got) == expected).mean() > 0.99  # sums in another order may round the other way


@pytest.fixture()
def saved(
    base: tuple[ModelConfig, Params], tmp_path: Path, random_adapter: Callable[..., Adapter]
) -> tuple[Path, ModelConfig]:
    config, _ = base
    spec = LoraSpec.model_validate({"r": 2})
    save_adapter(random_adapter(config, spec), tmp_path, spec, "base")
    return tmp_path, config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"target_modules": ["query"]}, "target_modules"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"r": 3}, "has shape"),
        ({"target_modules": ["q_proj"]}, "unexpected tensor"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, "k_proj.lora_A.weight is missing"),
    ],
)
def test_refused_folders(saved: tuple[Path, ModelConfig], changes: dict[str, Any], said: str) -> None:
    folder, config = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError) as caught:
        load_adapter(folder, config)
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)


def test_missing_and_damaged_folders(saved: tuple[Path, ModelConfig]) -> None:
    folder, config = saved
    weights = folder / "adapter_model.safetensors"
    store = TensorStore.of_file(weights)
    tensors = {name: store.read(name) for name in store.names()}
    tensors[store.names()[0]] = np.full_like(tensors[store.names()[0]], np.nan)
    write_tensors(weights, tensors)
    with pytest.raises(InputError, match="NaN"):
        load_adapter(folder, config)
    weights.unlink()
    with pytest.raises(InputError, match="does not exist"):
        load_adapter(folder, config)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        load_adapter(folder, config)
    with pytest.raises(InputError, match="does not exist"):
        load_adapter(folder / "nowhere", config)
